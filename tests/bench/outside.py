"""Processes as the kernel shows them in /proc. No supervisor is asked anything here, so all are measured alike."""

from __future__ import annotations

import os
import time
from pathlib import Path

PROC = Path("/proc")
POLL_S = 0.001


class TookTooLong(Exception):
    """What was waited for did not come."""


def pids() -> set[int]:
    # Not iterdir: it makes a Path of each name, which is most of its time, and this runs every millisecond.
    return {int(name) for name in os.listdir(PROC) if name.isdigit()}  # noqa: PTH208


def command_of(pid: int) -> list[str]:
    """Return the arguments of a process; empty for one that is gone, or a zombie."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def running(command: list[str]) -> list[int]:
    """Pids of all processes with exactly this command, the one that started first in front."""
    found = [pid for pid in pids() if command_of(pid) == command]
    return sorted(found, key=started_at)


def started_at(pid: int) -> int:
    """Clock ticks after boot at which a process started (proc(5), field 22 of stat); 0 for one that is gone."""
    try:
        return int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def wait_for_count(command: list[str], count: int, within_s: float) -> None:
    """Return when exactly ``count`` processes have this command; TookTooLong after ``within_s``."""
    deadline = time.monotonic() + within_s
    while (now := len(running(command))) != count:
        if time.monotonic() > deadline:
            raise TookTooLong(f"{now} of {count} x {' '.join(command)} after {within_s:.0f} s")
        time.sleep(0.02)


def wait_for_new(command: list[str], known: set[int], within_s: float) -> int:
    """Return the pid of a process with this command that is not in ``known``, as soon as its exec is done."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        for pid in pids() - known:
            if command_of(pid) == command:
                return pid
        time.sleep(POLL_S)
    raise TookTooLong(f"no new {' '.join(command)} within {within_s:.0f} s")


def rss_bytes(pid: int) -> int:
    return _kib(PROC / str(pid) / "status", "VmRSS:") * 1024


def pss_bytes(pid: int) -> int:
    """Memory of a process with each shared page divided among its users."""
    return _kib(PROC / str(pid) / "smaps_rollup", "Pss:") * 1024


def cpu_s(pid: int) -> float:
    """Seconds that all threads of a process have run (schedstat counts nanoseconds, stat only hundredths)."""
    tasks = (PROC / str(pid) / "task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _kib(path: Path, key: str) -> int:
    (line,) = [line for line in path.read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1])
