from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from gpuward.control.client import Client, Unreachable
from gpuward.control.feed import Feed, Lost
from gpuward.ctl.follow import event_lines


@pytest.fixture
def client(daemon: Any) -> Iterator[Client]:
    with Client(daemon.socket, timeout_s=5) as made:
        yield made


class Journal:
    """The events that the daemon still has; answers op ``events`` as the protocol says."""

    def __init__(self, documents: Any, last: int) -> None:
        self.documents = documents
        self.epoch, self.first, self.last = 7, 1, last

    def answer(self, args: dict[str, Any]) -> dict[str, Any]:
        since = args["since"]
        seqs = range(max(self.first, since or self.first), self.last + 1)
        chosen = seqs[-args["limit"] :] if since is None else seqs[: args["limit"]]
        page: dict[str, Any] = self.documents.page(*chosen, first=self.first, following=self.last + 1, epoch=self.epoch)
        return page


@pytest.fixture
def journal(daemon: Any, documents: Any) -> Journal:
    scripted = Journal(documents, last=3)
    daemon.ops["events"] = scripted.answer
    return scripted


def never(gone: Unreachable) -> None:
    raise gone


def seqs_of(feed: Any, count: int) -> list[Any]:
    return [one.reason if isinstance(one, Lost) else one["seq"] for one in islice(feed, count)]


def test_events_lists_the_last_ones(gpuctl: Any, journal: Journal) -> None:
    code, out, _ = gpuctl("events", "-n", "2")

    assert code == 0
    assert out.splitlines() == [
        "AT                    KIND          ABOUT     REASON",
        "2026-01-02T03:04:05Z  worker-ready  decode/0  reason 2",
        "2026-01-02T03:04:05Z  worker-ready  decode/0  reason 3",
    ]


def test_no_reason_is_cut_on_a_narrow_terminal(gpuctl: Any, journal: Journal, daemon: Any) -> None:
    long = (
        "it was killed by signal 9 (SIGKILL) while serving, and not by gpuward; starts again in 2.03 s: failure 1 of 5"
    )

    def answer(args: dict[str, Any]) -> dict[str, Any]:
        page = journal.answer(args)
        page["events"][-1] |= {"reason": long, "kind": "worker-releasing"}
        page["events"][-2] |= {"reason": long, "worker": "a-pool-with-a-name-of-forty-characters-or-so/12"}
        return page

    daemon.ops["events"] = answer

    _, out, _ = gpuctl("events", "-n", "2", "--color", "never", terminal=80)

    assert max(map(len, out.splitlines())) <= 80
    assert " ".join(out.split()).count(long) == 2
    assert out.splitlines()[0].startswith("01-02 03:04:05  worker-ready")


def test_a_followed_event_is_broken_where_a_terminal_ends_and_one_line_in_a_file(documents: Any) -> None:
    event = {**documents.page(1)["events"][0], "reason": "waits for VllmWorker/0 (starting): the first starts alone"}

    narrow = event_lines(event, 80, (0, 0))
    piped = event_lines(event, None, (0, 0))

    assert narrow == [
        "01-02 03:04:05  worker-ready  decode/0  waits for VllmWorker/0 (starting): the",
        "                                        first starts alone",
    ]
    assert piped == [f"{event['at']}  worker-ready  decode/0  {event['reason']}"]


def test_events_for_machines(gpuctl: Any, journal: Journal) -> None:
    document = json.loads(gpuctl("events", "-o", "json")[1])
    lines = [json.loads(line) for line in gpuctl("events", "-o", "jsonl")[1].splitlines()]

    assert document["schema_version"] == 1
    assert [event["seq"] for event in document["events"]] == [1, 2, 3]
    assert [(line["schema_version"], line["seq"]) for line in lines] == [(1, 1), (1, 2), (1, 3)]
    assert gpuctl("events", "-o", "name")[1] == "7.1\n7.2\n7.3\n"


def test_following_tells_the_past_then_what_happens(
    gpuctl: Any, daemon: Any, documents: Any, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuward.ctl.follow.QUIET_S", 0.01)
    asked = 0

    def answer(args: dict[str, Any]) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        if asked == 3:
            journal.last = 4
        if asked == 5:
            import _thread

            _thread.interrupt_main()
        return journal.answer(args)

    daemon.ops["events"] = answer

    code, out, err = gpuctl("events", "-f", "-n", "1", "-o", "name")

    assert (code, out, err) == (130, "7.3\n7.4\n", "")


class Publishing:
    """Publishes ``events`` as soon as the follower has subscribed and asked for what it missed: nothing, so far."""

    def __init__(self, daemon: Any, journal: Journal, *events: dict[str, Any]) -> None:
        self._daemon, self._journal, self._events = daemon, journal, list(events)
        daemon.ops["events"] = self.answer

    def answer(self, args: dict[str, Any]) -> dict[str, Any]:
        page = self._journal.answer(args)
        if args["since"] is not None and self._events:
            self._daemon.await_subscription()
            for event in self._events:
                self._daemon.publish(event)
            self._journal.last = max(event["seq"] for event in self._events)
            self._events = []
        return page


def test_published_events_come_once_and_in_order(client: Client, daemon: Any, documents: Any, journal: Journal) -> None:
    feed = Feed(client, quiet_s=60)
    list(feed.last(10))
    Publishing(daemon, journal, *(documents.event(seq) for seq in (3, 4, 5, 5, 4, 6)))

    assert seqs_of(feed.follow(reconnect=never), 3) == [4, 5, 6]


@pytest.mark.parametrize("published", [(5,), (4, 9), (8, 9)])
def test_a_gap_in_what_was_published_is_filled_by_asking(
    client: Client, daemon: Any, documents: Any, journal: Journal, published: tuple[int, ...]
) -> None:
    feed = Feed(client, quiet_s=60)
    list(feed.last(10))
    Publishing(daemon, journal, *(documents.event(seq) for seq in published))

    seqs = list(range(4, published[-1] + 1))
    assert seqs_of(feed.follow(reconnect=never), len(seqs)) == seqs


def test_a_lost_last_event_is_found_when_it_is_quiet(client: Client, journal: Journal) -> None:
    feed = Feed(client, quiet_s=0.02)
    list(feed.last(10))
    following = feed.follow(reconnect=never)
    journal.last = 4

    assert seqs_of(following, 1) == [4]


def test_a_gap_larger_than_a_page_is_filled_page_by_page(
    client: Client, journal: Journal, daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuward.control.feed.PAGE_LIMIT", 2)
    feed = Feed(client, quiet_s=0.02)
    list(feed.last(10))
    journal.last = 8

    assert seqs_of(feed.follow(reconnect=never), 5) == [4, 5, 6, 7, 8]


def test_events_that_the_daemon_has_no_more_are_said_to_be_lost(client: Client, journal: Journal) -> None:
    feed = Feed(client, quiet_s=0.02)
    list(feed.last(10))
    journal.first, journal.last = 8, 9

    lost, *rest = seqs_of(feed.follow(reconnect=never), 3)

    assert lost.startswith("4 events are lost")
    assert rest == [8, 9]


def test_a_new_life_of_the_daemon_is_told_and_followed_from_its_start(client: Client, journal: Journal) -> None:
    feed = Feed(client, quiet_s=0.02)
    list(feed.last(10))
    journal.epoch, journal.last = 8, 2

    anew, *rest = seqs_of(feed.follow(reconnect=never), 3)

    assert anew.startswith("the daemon was started anew")
    assert rest == [1, 2]


def test_a_feed_of_one_pool_leaves_others_out(client: Client, daemon: Any, documents: Any, journal: Journal) -> None:
    feed = Feed(client, worker="decode", quiet_s=60)
    list(feed.last(10))
    of_whom = {4: "decoder/0", 5: None, 6: "decode/1", 7: "prefill/0", 8: "decode"}
    Publishing(daemon, journal, *(documents.event(seq, worker=worker) for seq, worker in of_whom.items()))

    assert seqs_of(feed.follow(reconnect=never), 2) == [6, 8]


def test_without_a_daemon_the_follower_is_asked_whether_to_go_on(client: Client, daemon: Any, journal: Journal) -> None:
    feed = Feed(client, quiet_s=0.02)
    list(feed.last(10))
    told: list[str] = []

    def give_up_at_the_second(gone: Unreachable) -> None:
        told.append(str(gone))
        if len(told) == 2:
            raise gone

    daemon.close()

    with pytest.raises(Unreachable):
        next(feed.follow(reconnect=give_up_at_the_second))
    assert len(told) == 2
