"""Facts about processes, read from /proc (proc(5)). Never signals one, never decides.

A pid alone names nobody: pids are reused. An `Identity` names one process for good.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

COMMAND_LINE_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, for good: ``start_ticks`` is its start time in clock ticks since the boot ``boot_id``."""

    boot_id: str
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Description:
    """What a reason says of a process. ``user`` is a number where it has no name."""

    user: str
    name: str
    command_line: str


@cache
def boot_id() -> str:
    """Return the random id of this boot of the kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> Identity | None:
    """Return who has this pid now (a zombie counts); None where nobody has."""
    fields = _stat(pid)
    return Identity(boot_id(), pid, int(fields[19])) if fields else None


def same(identity: Identity) -> bool:
    """Whether that very process still exists; a zombie does, its pid is not free."""
    return identify(identity.pid) == identity


def alive(identity: Identity) -> bool:
    """Whether that very process still exists and runs: a zombie does not."""
    fields = _stat(identity.pid)
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


def tree(pid: int) -> tuple[int, ...]:
    """Return all descendants of a process, parents before children, without the process itself.

    Ask for the keeper's tree: orphans of a run go to the keeper (child subreaper), not out of the run.
    """
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = _children(waiting.pop(0))
        found += below
        waiting += below
    return tuple(found)


def find_marked(marker: bytes) -> tuple[int, ...]:
    """Return the processes whose initial environment has the entry ``marker`` (``NAME=VALUE``, compared whole).

    Only processes whose environment this user may read. A program may overwrite this area when it sets its title:
    see ``SPT_NOENV`` in `engines.environment`. During an exec it is empty for an instant: ask `in_session` too.
    """
    return tuple(pid for pid in _pids() if marker in _read(f"/proc/{pid}/environ").split(b"\0"))


def in_session(session: int) -> tuple[int, ...]:
    """Return the processes of a session, zombies too."""
    return tuple(pid for pid in _pids() if (fields := _stat(pid)) and int(fields[3]) == session)


def describe(pid: int) -> Description | None:
    """Return what can be said of a process; None where there is none."""
    try:
        uid = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None
    user = str(uid)
    with suppress(KeyError):
        user = pwd.getpwuid(uid).pw_name
    words = _read(f"/proc/{pid}/cmdline")[:COMMAND_LINE_BYTES_MAX].replace(b"\0", b" ")
    name = _read(f"/proc/{pid}/comm")
    return Description(user, name.decode(errors="replace").strip(), words.decode(errors="replace").strip())


def _pids() -> Iterator[int]:
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdecimal():
                yield int(entry.name)


def _read(path: str) -> bytes:
    """Return a file of /proc; nothing where the process is gone or not ours to read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - called for every process of the host
            return file.read()
    except OSError:
        return b""


def _stat(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat from ``state`` on (field 3 of proc(5) is item 0); empty where it is gone."""
    # the name before them may hold blanks and brackets, so they are counted from the last bracket
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def _children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208
    except OSError:
        return []
    return [int(word) for thread in threads for word in _read(f"/proc/{pid}/task/{thread}/children").split()]
