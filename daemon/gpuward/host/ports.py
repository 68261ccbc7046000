"""Who listens on a TCP port of this host, read from /proc (proc(5), Documentation/networking/proc_net_tcp.rst).

Answers only; never binds, never connects.
"""

from __future__ import annotations

import os
import socket as sockets_api
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from gpuward.host.processes import describe

LISTEN: Final = "0A"
MAPPED: Final = "::ffff:"


@dataclass(frozen=True, slots=True)
class Socket:
    """One listening socket; ``inode`` is its name in /proc/PID/fd, ``uid`` the user that made it."""

    address: str
    port: int
    uid: int
    inode: int


@dataclass(frozen=True, slots=True)
class Listener:
    """A process that listens; ``pid`` None where this user may not see whose socket it is."""

    pid: int | None
    name: str


def listening(port: int | None = None) -> tuple[Socket, ...]:
    """Return the listening sockets of this network namespace, IPv4 and IPv6, on every interface; one port's or all."""
    wanted = None if port is None else f"{port:04X}"
    return tuple(socket for path in ("/proc/net/tcp", "/proc/net/tcp6") for socket in _sockets(path, wanted))


def listener(port: int) -> Listener | None:
    """Return who listens on ``port``, None where nobody does. Cheap where nobody does; else looks at every process."""
    sockets = listening(port)
    return holder(sockets[0]) if sockets else None


def holder(socket: Socket) -> Listener:
    """Return a process that holds ``socket``; looks at every process of the host."""
    pid = owners((socket,), _all_pids()).get(socket.inode)
    described = None if pid is None else describe(pid)
    return Listener(pid, described.name if described else f"a process of user {socket.uid}")


def owners(sockets: Iterable[Socket], pids: Iterable[int]) -> dict[int, int]:
    """Return which of ``pids`` holds each socket, by inode; a socket that none of them holds is left out.

    A socket can have several holders (it is inherited over fork); the first one found is named.
    """
    wanted = {f"socket:[{socket.inode}]": socket.inode for socket in sockets}
    found: dict[int, int] = {}
    for pid in pids:
        for link in _links(pid):
            inode = wanted.get(link)
            if inode is not None:
                found.setdefault(inode, pid)
        if len(found) == len(wanted):
            break
    return found


def reached(sockets: Collection[Socket], address: str) -> tuple[Socket, ...]:
    """Return those of ``sockets`` that a connection to ``address`` may end at; several only where they share the port.

    The kernel prefers a listener on the very address, then one on all addresses of its family, then one on ``::``.
    """
    family = ("::",) if ":" in address else ("0.0.0.0", "::")
    for bound in (address, *family):
        found = tuple(socket for socket in sockets if socket.address == bound)
        if found:
            return found
    return ()


def _sockets(path: str, wanted: str | None) -> Iterator[Socket]:
    """Return the listening sockets of a table; they stand before all connections, so the rest is not read."""
    try:
        with open(path, encoding="ascii") as table:  # noqa: PTH123 - read line by line, not whole
            next(table, None)
            for line in table:
                words = line.split()
                if words[3] != LISTEN:
                    return
                address, _, port = words[1].partition(":")
                if wanted is None or port == wanted:
                    yield Socket(_address(address), int(port, 16), int(words[7]), int(words[9]))
    except OSError:  # a kernel without IPv6 has no tcp6
        return


def _address(text: str) -> str:
    """Return an address as people write it, from 32-bit words in the host's byte order; IPv4 in IPv6 as IPv4."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    family = sockets_api.AF_INET if len(words) == 1 else sockets_api.AF_INET6
    return sockets_api.inet_ntop(family, struct.pack(f"={len(words)}I", *words)).removeprefix(MAPPED)


def _all_pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())  # noqa: PTH208


def _links(pid: int) -> Iterator[str]:
    """Return what the descriptors of a process stand for; nothing where it is gone or not ours to see."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                try:
                    yield os.readlink(entry.path)  # noqa: PTH115
                except OSError:
                    continue
    except OSError:
        return
