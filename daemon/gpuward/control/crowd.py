"""Room for descriptors: where clients have taken nearly all that this process may have, the newest are hung up on.

libzmq 4.3.5 ends the process (an assertion in ipc_listener.cpp) when accept() finds no free descriptor, and offers no
limit on connections. A thread of its own looks so often that clients who wait for answers cannot take the room between
two looks; hundreds of connections within 20 ms still can, where the limit is as low as 1,024.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Final

from gpuward.control.intake import connections_to, shut_down

ACCEPTS_PER_S: Final = 20_000
"""More than libzmq was seen to accept (13,000 on a slow machine)."""

LOOK_EVERY_S_MAX: Final = 1.0
KEPT_LEAST: Final = 8
"""Connections that stay in any case, the oldest: one may be the operator's."""


class Crowd:
    """Watches this process' descriptors; ``on_hung_up`` is told, on the thread, how many connections were ended."""

    def __init__(self, paths: Sequence[str], on_hung_up: Callable[[int], None]) -> None:
        self._paths = frozenset(paths)
        self._on_hung_up = on_hung_up
        self._limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # the soft limit is raised to it
        self._over = threading.Event()

    def start(self) -> None:
        """Look until `stop`."""
        threading.Thread(target=self._watch, name="gpuward-crowd", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()

    def _watch(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGTERM, signal.SIGINT})  # for the main thread
        while not self._over.wait(min(LOOK_EVERY_S_MAX, self._room / ACCEPTS_PER_S / 2)):
            self.look()

    @property
    def _room(self) -> int:
        """Descriptors that are kept free."""
        return self._limit // 2

    def look(self) -> None:
        """End the newest connections where too few descriptors are free."""
        used = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - up to 300 times a second
        if self._limit - used >= self._room:
            return
        connections = sorted(connections_to(self._paths), key=_age)
        kept = max(KEPT_LEAST, (self._limit - (used - len(connections))) // 2)
        for fd in connections[kept:]:
            shut_down(fd)
        if len(connections) > kept:
            self._on_hung_up(len(connections) - kept)


def _age(fd: int) -> int:
    """The inode of a socket: the kernel counts them up."""
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return 0
