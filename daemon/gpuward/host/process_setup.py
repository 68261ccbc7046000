"""What the daemon sets for its own process: subreaper, file limit, locks on its directories, reaping."""

from __future__ import annotations

import fcntl
import os
import resource
from contextlib import suppress
from pathlib import Path

from gpuward.host.keeper import PR_SET_CHILD_SUBREAPER, prctl


class AlreadyLocked(Exception):
    """Another daemon works in this directory; the message names it."""


def become_subreaper() -> None:
    """Orphans of a killed keeper come to this process instead of init, so they can be reaped (prctl(2))."""
    with suppress(OSError):
        prctl(PR_SET_CHILD_SUBREAPER, 1)


def raise_file_limit() -> None:
    """Soft limit up to the hard one: libzmq aborts the process when accept() finds no free descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def lock_directory(directory: Path) -> int:
    """Take a directory for this process; the lock is held while the returned descriptor is open."""
    path = directory / "gpuward.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(fd, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise AlreadyLocked(f"the gpuward with pid {owner} works in {directory} already") from None
    with suppress(OSError):  # the disk may be full; the pid is for the reader of a refusal only
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def reap() -> None:
    """Collect every child that has ended: keepers, whose ends are on record, and orphans."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
