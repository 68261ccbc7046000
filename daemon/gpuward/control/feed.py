"""Events as they happen, with nothing lost in silence: the PUB socket tells at once, op ``events`` fills every gap."""

from __future__ import annotations

import json

from gpuward.control import protocol, zmtp
from gpuward.control.client import Client, Unreachable, connect, why_unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gpuward.control.documents import Event, EventPage

TOPIC = b"event"
PAGE_LIMIT = 500


class Lost:
    """Events that can no longer be had, with the reason in one sentence."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Feed:
    """The place in the stream of events: ``epoch`` of the daemon and the ``seq`` that comes next.

    ``worker`` limits the feed to one worker or pool. After ``quiet_s`` without an event it asks whether one was lost,
    since the loss of the last one leaves no gap to see.
    """

    def __init__(self, client: Client, *, worker: str | None = None, quiet_s: float) -> None:
        self._client = client
        self._worker = worker
        self._quiet_s = quiet_s
        self._epoch: int | None = None
        self._next_seq = 0

    def last(self, count: int) -> Iterator[Event]:
        """Yield the newest ``count`` events that the daemon still has, oldest first."""
        page: EventPage = self._client.call("events", {"since": None, "limit": count, "worker": self._worker})
        self._epoch, self._next_seq = page["epoch"], page["next_seq"]
        yield from page["events"]

    def follow(self, *, reconnect: Callable[[Unreachable], None]) -> Iterator[Event | Lost]:
        """Yield what happens after `last`, for ever.

        ``reconnect`` is told when the daemon is gone; it waits a while and returns to try again, or raises.
        """
        while True:
            try:
                yield from self._follow_one_connection()
            except Unreachable as gone:
                reconnect(gone)

    def _follow_one_connection(self) -> Iterator[Event | Lost]:
        path = protocol.events_path(self._client.socket_path)
        connection: zmtp.Connection | None = None
        try:
            connection = connect(path, "SUB", self._quiet_s)
            connection.subscribe(TOPIC, timeout_s=self._quiet_s)
            yield from self._missed()
            while True:
                yield from self._next_of(connection)
        except (OSError, zmtp.NotZmtp) as error:
            raise Unreachable(why_unreachable(path, error, self._quiet_s)) from error
        finally:
            if connection is not None:
                connection.close()

    def _next_of(self, connection: zmtp.Connection) -> Iterator[Event | Lost]:
        try:
            frames = connection.receive(timeout_s=self._quiet_s)
        except TimeoutError:
            yield from self._missed()
            return
        event: Event = json.loads(frames[-1])
        if event["epoch"] != self._epoch or event["seq"] > self._next_seq:
            yield from self._missed()
        elif event["seq"] == self._next_seq:
            self._next_seq += 1
            if self._wants(event):
                yield event

    def _missed(self) -> Iterator[Event | Lost]:
        """Ask for everything since the last event that was seen."""
        while True:
            since = self._next_seq
            page: EventPage = self._client.call("events", {"since": since, "limit": PAGE_LIMIT, "worker": self._worker})
            if page["epoch"] != self._epoch:
                yield from self._new_daemon(page)
                continue
            if page["first_seq"] > since:
                yield Lost(f"{page['first_seq'] - since} events are lost: the daemon keeps no more than it can hold")
            yield from page["events"]
            full = len(page["events"]) >= PAGE_LIMIT
            self._next_seq = page["events"][-1]["seq"] + 1 if full else page["next_seq"]
            if not full:
                return

    def _new_daemon(self, page: EventPage) -> Iterator[Lost]:
        if self._epoch is not None:
            yield Lost("the daemon was started anew; what it did in between is in its log")
        self._epoch, self._next_seq = page["epoch"], page["first_seq"]

    def _wants(self, event: Event) -> bool:
        worker = event["worker"]
        return self._worker is None or (
            worker is not None and (worker == self._worker or worker.startswith(f"{self._worker}/"))
        )
