"""Claims on simulated GPU memory: one file per process, named by its pid, with lines ``GPU BYTES`` (index or UUID).

A claim counts while its process lives, and for the seconds of its line ``lag SECONDS``, if it has one, after the first
look that finds the process dead: a GPU may give memory back late, when no process is listed on it any more. Standard
library only and light: the simulated worker imports it too.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

CLAIM_MAX_BYTES: Final = 65536
NO_PROCESS: Final = 0
"""Whose claim it is when its process has ended."""

LAG: Final = "lag"
_GONE: Final = ".gone"
"""Suffix of a claim whose process has ended; the file's time is when that was seen."""

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_REUSE_SLACK_S: Final = 0.5
"""A process writes its claim after it started; clock ticks and file times are this coarse at the very worst."""


class ProcessStatus(NamedTuple):
    """State letter and start time (clock ticks since boot) of a process, from ``/proc/PID/stat`` (proc(5))."""

    state: str
    start_ticks: int

    @property
    def alive(self) -> bool:
        """Whether it can hold memory: a zombie has given everything back."""
        return self.state not in "ZXx"


class Claim(NamedTuple):
    """What one process holds: (GPU as written in the file, bytes) pairs; ``lag_s``: for how long after its end."""

    pid: int
    start_ticks: int
    shares: tuple[tuple[str, int], ...]
    lag_s: float = 0.0


class _Seen(NamedTuple):
    key: tuple[int, int, int, int]
    claim: Claim | None


def process_status(pid: int) -> ProcessStatus | None:
    """Return state and start time of ``pid``, None when there is no such process."""
    content = _read_small(f"/proc/{pid}/stat")
    if content is None:
        return None
    fields = content[content.rindex(b")") + 2 :].split()
    return ProcessStatus(fields[0].decode(), int(fields[19]))


def write_claim(directory: str, shares: Mapping[str, int], lag_s: float = 0.0) -> None:
    """Make ``shares`` (GPU to bytes) the claim of the calling process, in one step."""
    pid = os.getpid()
    draft = f"{directory}/.{pid}.draft"
    with open(draft, "w", encoding="ascii") as file:  # noqa: PTH123  pathlib would double the worker's start time
        file.writelines(f"{gpu} {held_bytes}\n" for gpu, held_bytes in shares.items())
        if lag_s:
            file.write(f"{LAG} {lag_s}\n")
    os.replace(draft, f"{directory}/{pid}")  # noqa: PTH105


class ClaimReader:
    """Reads a claims directory; remembers what it has parsed, so that a round costs one stat per claim."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._seen: dict[int, _Seen] = {}

    def read(self) -> list[Claim]:
        """Return the claims of living processes, by pid, then what is given back late. What is over is removed.

        Raises OSError where the directory cannot be listed.
        """
        names = os.listdir(self._directory)  # noqa: PTH208
        pids = sorted(int(name) for name in names if name.isascii() and name.isdigit() and name[0] != "0")
        self._seen = {pid: seen for pid in pids if (seen := self._look(pid)) is not None}
        living = [seen.claim for seen in self._seen.values() if seen.claim is not None]
        gone = [name for name in os.listdir(self._directory) if name.endswith(_GONE)]  # noqa: PTH208  after the burials
        late = (self._late(f"{self._directory}/{name}") for name in gone)
        return [*living, *(claim for claim in late if claim is not None)]

    def _bury(self, path: str, pid: int) -> None:
        """The process of a claim has ended: drop it, or let it lag, once, whoever else looks at the same time."""
        claim = _parsed(path, pid, 0)
        with contextlib.suppress(OSError):
            if claim is None or not claim.lag_s:
                os.unlink(path)  # noqa: PTH108
            else:
                os.utime(path)
                os.rename(path, f"{path}{_GONE}")  # noqa: PTH104

    def _late(self, path: str) -> Claim | None:
        claim = _parsed(path, NO_PROCESS, 0)
        with contextlib.suppress(OSError):
            if claim is not None and time.time() - os.lstat(path).st_mtime < claim.lag_s:
                return claim
            os.unlink(path)  # noqa: PTH108
        return None

    def _look(self, pid: int) -> _Seen | None:
        path = f"{self._directory}/{pid}"
        process = process_status(pid)
        if process is None or not process.alive:
            self._bury(path, pid)
            return None
        try:
            facts = os.lstat(path)
        except OSError:
            return None
        key = (process.start_ticks, facts.st_ino, facts.st_mtime_ns, facts.st_size)
        seen = self._seen.get(pid)
        if seen is not None and seen.key == key:
            return seen
        return _Seen(key, _parse(path, pid, process.start_ticks, facts))


def _parse(path: str, pid: int, start_ticks: int, facts: os.stat_result) -> Claim | None:
    """Return the claim in ``path``, None for garbage, and for a file older than the process: its pid was reused."""
    if facts.st_mtime + _REUSE_SLACK_S < _started_at_s(start_ticks):
        return None
    return _parsed(path, pid, start_ticks)


def _parsed(path: str, pid: int, start_ticks: int) -> Claim | None:
    content = _read_small(path)
    if content is None:
        return None
    try:
        lines = [line for line in content.decode("ascii").splitlines() if line.strip()]
        shares = tuple(_share(line) for line in lines if line.split()[0] != LAG)
        lag_s = sum(float(line.split()[1]) for line in lines if line.split()[0] == LAG)
    except (ValueError, IndexError):
        return None
    return Claim(pid, start_ticks, shares, lag_s)


def _share(line: str) -> tuple[str, int]:
    gpu, held = line.split()
    held_bytes = int(held)
    if held_bytes < 0:
        raise ValueError(line)
    return gpu, held_bytes


def _started_at_s(start_ticks: int) -> float:
    """Wall-clock time of a start given in ticks since boot."""
    boot_at_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return boot_at_s + start_ticks / _TICKS_PER_S


def _read_small(path: str) -> bytes | None:
    """Return the first bytes of a file, None where it cannot be read; never waits for a writer, as a FIFO would."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return os.read(descriptor, CLAIM_MAX_BYTES)
    except OSError:
        return None
    finally:
        os.close(descriptor)
