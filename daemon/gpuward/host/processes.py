"""Facts about processes, from psutil, and from /proc (proc(5)) what it does not tell. Never signals one.

A pid alone names nobody: pids are reused. An `Identity` names one process for good.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from gpuward.host.program import program
from gpuward.host.text import clean


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, for good: ``start_ticks`` is its start time in clock ticks since the boot ``boot_id``."""

    boot_id: str
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Description:
    """What a reason says of a process, printable. ``user`` is a number where it has no name.

    ``name``: the program, of an interpreter with its script. Never more of the command line: keys stand there.
    """

    user: str
    name: str


@cache
def boot_id() -> str:
    """Return the random id of this boot of the kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> Identity | None:
    """Return who has this pid now (a zombie counts); None where nobody has."""
    fields = stat_fields(pid)
    return Identity(boot_id(), pid, int(fields[19])) if fields else None


def same(identity: Identity) -> bool:
    """Whether that very process still exists; a zombie does, its pid is not free."""
    return identify(identity.pid) == identity


def alive(identity: Identity) -> bool:
    """Whether that very process still exists and runs: a zombie does not."""
    fields = stat_fields(identity.pid)
    ours = identity.boot_id == boot_id() and bool(fields) and int(fields[19]) == identity.start_ticks
    return ours and fields[0] not in {b"Z", b"X"}


def open_pidfd(identity: Identity) -> int | None:
    """Return a pidfd of that very process, or None where it is gone. The caller closes it.

    The identity is compared after the descriptor is open: from then on the pid cannot pass to another process unseen.
    """
    try:
        fd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    if same(identity):
        return fd
    os.close(fd)
    return None


def ancestors(pid: int) -> Iterator[int]:
    """Return the parents of a process, nearest first, as far as they are older than their children.

    One that is younger has only the pid of a parent that ended while this looked.
    """
    fields = stat_fields(pid)
    while fields:
        parent = int(fields[1])
        above = stat_fields(parent)
        if not above or int(above[19]) > int(fields[19]):
            return
        yield parent
        fields = above


def tree(pid: int) -> tuple[int, ...]:
    """Return all descendants of a process, parents before children, without the process itself.

    Ask for the keeper's tree: orphans of a run go to the keeper (child subreaper), not out of the run.
    """
    try:
        return tuple(child.pid for child in psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return ()


def environment(pid: int) -> list[bytes]:
    """Return the entries of a process' initial environment; none where it is gone or not ours to read."""
    return _read(f"/proc/{pid}/environ").split(b"\0")


def find_marked(marker: bytes) -> tuple[int, ...]:
    """Return the processes whose initial environment has the entry ``marker`` (``NAME=VALUE``, compared whole).

    Only processes whose environment this user may read. A program may overwrite this area when it sets its title:
    see ``SPT_NOENV`` in `engines.environment`. During an exec it is empty for an instant: ask `in_session` too.
    """
    return tuple(pid for pid in psutil.pids() if marker in environment(pid))


def command_line(pid: int) -> list[bytes]:
    """Return the words of a process' command line; one empty word where there are none."""
    return _read(f"/proc/{pid}/cmdline").removesuffix(b"\0").split(b"\0")


def state_of(pid: int) -> str:
    """Return the letter of a process' state (proc(5)); empty where it is gone."""
    fields = stat_fields(pid)
    return fields[0].decode() if fields else ""


def in_session(session: int) -> tuple[int, ...]:
    """Return the processes of a session, zombies too."""
    return tuple(pid for pid in psutil.pids() if (fields := stat_fields(pid)) and int(fields[3]) == session)


def describe(pid: int) -> Description | None:
    """Return what can be said of a process; None where there is none."""
    try:
        process = psutil.Process(pid)
        return Description(clean(process.username()), program(pid) or "unknown")
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return Description("unknown", "unknown")


def _read(path: str) -> bytes:
    """Return a file of /proc; nothing where the process is gone or not ours to read.

    OSError where this process has no descriptor left: that says nothing about the other, least of all that it is gone.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - called for every process of the host
            return file.read()
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            raise
        return b""


def stat_fields(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat from ``state`` on (field 3 of proc(5) is item 0); empty where it is gone."""
    # the name before them may hold blanks and brackets, so they are counted from the last bracket
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
