"""A bound on what clients make the daemon hold: whoever sends without end is hung up on.

libzmq hands a message over when its last frame is there and bounds only the size of each frame (ZMQ_MAXMSGSIZE), not
their number: what one unfinished message holds shows nowhere but in this process' memory. So that is watched, and
where it has grown beyond any request, the connections from which bytes still come are shut down; libzmq then drops
what it has of their messages. Looks at this process and its sockets only; it reads no message.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

LOOK_EVERY_S: Final = 0.2
LEAST_MAX_BYTES: Final = 128 << 20
REQUESTS_HELD: Final = 8
"""So many requests of the greatest size may be held at the same time, where that is more than LEAST_MAX_BYTES."""

STILL_COMING_BYTES: Final = 4096
"""Unread bytes in the kernel that tell a sender who does not stop from one who has asked something small."""

LOOKS_WITHOUT_SUSPECT: Final = 10
"""A sender so slow that nothing is ever unread is not found: after so many looks every connection is shut down."""

TRIMS: Final = 10
"""Looks after a connection was shut down at which freed memory is given back: libzmq frees it in its own time."""

_PAGE_BYTES: Final = os.sysconf("SC_PAGESIZE")
_CONNECTED: Final = "03"
"""SS_CONNECTED of linux/net.h, as /proc/net/unix shows it."""


class Intake:
    """Watches the sockets bound to ``paths``; ``on_hung_up`` is told how many connections were shut down."""

    def __init__(self, paths: Sequence[str], max_message_bytes: int, on_hung_up: Callable[[int], None]) -> None:
        self.max_bytes = max(LEAST_MAX_BYTES, REQUESTS_HELD * max_message_bytes)
        self._paths = frozenset(paths)
        self._on_hung_up = on_hung_up
        self._floor_bytes = 0
        self._looks_over = 0
        self._trims_left = 0

    async def watch(self) -> None:
        """Look until cancelled."""
        self._floor_bytes = resident_bytes()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.look()

    def look(self) -> None:
        """Shut connections down where this process holds too much for what clients may have sent."""
        if self._trims_left:
            self._trims_left -= 1
            give_back_memory()
        if resident_bytes() - self._floor_bytes <= self.max_bytes:
            self._looks_over = 0
            return
        self._looks_over += 1
        connections = {fd: unread_bytes(fd) for fd in connections_to(self._paths)}
        everybody = self._looks_over > LOOKS_WITHOUT_SUSPECT
        ended = [fd for fd, unread in connections.items() if everybody or unread >= STILL_COMING_BYTES]
        for fd in ended:
            shut_down(fd)
        self._trims_left = TRIMS
        if everybody:  # what is left is none of theirs
            self._floor_bytes = resident_bytes()
        if ended:
            self._on_hung_up(len(ended))


def resident_bytes() -> int:
    """Memory that this process has."""
    with open("/proc/self/statm", "rb", buffering=0) as file:  # noqa: PTH123 - read five times a second
        return int(file.read(200).split()[1]) * _PAGE_BYTES


def connections_to(paths: frozenset[str]) -> Iterator[int]:
    """Descriptors of this process that are connections accepted on one of these socket paths."""
    inodes = set()
    for line in Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]:
        fields = line.split(maxsplit=7)  # Num RefCount Protocol Flags Type St Inode Path
        if len(fields) == 8 and fields[5] == _CONNECTED and fields[7] in paths:
            inodes.add(f"socket:[{fields[6]}]")
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the descriptor of the listing itself is gone
            if str(entry.readlink()) in inodes:
                yield int(entry.name)


def unread_bytes(fd: int) -> int:
    """What the kernel has for a connection and nobody has read yet; 0 for one that is gone."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0])
    except OSError:
        return 0


def give_back_memory() -> None:
    """Return freed memory to the kernel: malloc keeps what lies below the last thing that is in use."""
    with suppress(AttributeError, OSError):  # malloc_trim is glibc's
        ctypes.CDLL(None).malloc_trim(0)


def shut_down(fd: int) -> None:
    """End a connection that libzmq owns; it reads the end of the stream and closes it itself."""
    with suppress(OSError):
        connection = socket.socket(fileno=fd)
        try:
            connection.shutdown(socket.SHUT_RDWR)
        finally:
            connection.detach()
