"""A small event loop and message channel: asyncio would double the memory of a simulated worker."""

from __future__ import annotations

import contextlib
import heapq
import json
import selectors
import signal
import socket
import time
from collections.abc import Callable
from typing import Final

Message = list[object]
"""A verb and its operands; whoever receives one matches its shape."""

_MESSAGE_MAX_BYTES: Final = 262144
_EVENTS: Final = {False: selectors.EVENT_READ, True: selectors.EVENT_READ | selectors.EVENT_WRITE}


class Timer:
    """A call to come."""

    __slots__ = ("then",)

    def __init__(self, then: Callable[[], None]) -> None:
        self.then: Callable[[], None] | None = then

    def cancel(self) -> None:
        """Make it a call that does not come."""
        self.then = None


class Loop:
    """Calls back on readable sockets, due times and signals; sleeps in between, for ever where nothing is due."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._running = False
        self._signals: tuple[socket.socket, socket.socket] | None = None

    def watch(self, source: socket.socket, ready: Callable[[], None], *, writing: bool = False) -> None:
        """Call ``ready`` when ``source`` can be read, with ``writing`` also when it can be written."""
        if source.fileno() in self._selector.get_map():
            self._selector.modify(source, _EVENTS[writing], ready)
        else:
            self._selector.register(source, _EVENTS[writing], ready)

    def unwatch(self, source: socket.socket) -> None:
        """Forget ``source``, before it is closed."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(source)

    def call_later(self, delay_s: float, then: Callable[[], None]) -> Timer:
        """Call ``then`` once, ``delay_s`` seconds from now."""
        timer = Timer(then)
        self._count += 1
        heapq.heappush(self._timers, (time.monotonic() + delay_s, self._count, timer))
        return timer

    def on_signal(self, signal_number: int, then: Callable[[], None]) -> None:
        """Call ``then`` in the loop, not in the midst of whatever the signal interrupts."""
        if self._signals is None:
            self._signals = socket.socketpair()
            for end in self._signals:
                end.setblocking(False)
            signal.set_wakeup_fd(self._signals[1].fileno())
            self.watch(self._signals[0], self._drain_signals)
        signal.signal(signal_number, lambda *_: self._soon(then))

    def run(self) -> None:
        """Run until `stop`."""
        self._running = True
        while self._running:
            self._turn()

    def stop(self) -> None:
        """Return from `run` after the present call."""
        self._running = False

    def close(self) -> None:
        """Give up the loop in a forked child: its signals are no longer ours."""
        signal.set_wakeup_fd(-1)
        self._selector.close()
        for end in self._signals or ():
            end.close()

    def _soon(self, then: Callable[[], None]) -> None:
        self.call_later(0.0, then)

    def _turn(self) -> None:
        delay_s = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
        for key, _ in self._selector.select(delay_s):
            key.data()
        now_s = time.monotonic()
        while self._running and self._timers and self._timers[0][0] <= now_s:
            timer = heapq.heappop(self._timers)[2]
            if timer.then is not None:
                timer.then()

    def _drain_signals(self) -> None:
        assert self._signals is not None
        with contextlib.suppress(BlockingIOError):
            while self._signals[0].recv(64):
                pass


class Channel:
    """Messages between two processes of one tree; the death of the other end is an end of file."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Return two connected ends, one for each side of a fork."""
        first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(first), cls(second)

    def send(self, *message: object, wait: bool = True) -> None:
        """Send; a dead peer is not an error. Without ``wait`` a peer that does not read loses the message."""
        with contextlib.suppress(OSError):
            self.socket.send(json.dumps(message).encode(), 0 if wait else socket.MSG_DONTWAIT)

    def receive(self) -> Message | None:
        """Wait for a message; None when the peer is gone."""
        try:
            packet = self.socket.recv(_MESSAGE_MAX_BYTES)
        except OSError:
            return None
        message: Message | None = json.loads(packet) if packet else None
        return message

    def close(self) -> None:
        """Close this end."""
        self.socket.close()
