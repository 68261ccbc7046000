"""What the daemon sets for its own process: descriptors, subreaper, file limit, directory locks, reaping."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

from gpuward.host.keeper import PR_SET_CHILD_SUBREAPER, prctl

LOCK_NAME = "gpuward.lock"


class AlreadyLocked(Exception):
    """Another daemon works in this directory; the message names it."""


def become_subreaper() -> None:
    """Orphans of a killed keeper come to this process instead of init, so they can be reaped (prctl(2))."""
    with suppress(OSError):
        prctl(PR_SET_CHILD_SUBREAPER, 1)


def open_standard_streams() -> None:
    """Give a process that was started with closed standard streams /dev/null for each: no other file gets 0, 1 or 2."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for good
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def has_terminal() -> bool:
    """Whether this process has a controlling terminal; one that was closed is none any more (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True


FILES_LEAST = 1024
"""Fewer descriptors are gone before anybody can be hung up on (`control.crowd`)."""


def raise_file_limit() -> None:
    """Soft limit up to the hard one; OSError where that is too low to serve clients and workers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < FILES_LEAST:
        raise OSError(
            errno.EMFILE,
            f"at most {hard} files may be open here, gpuward needs {FILES_LEAST} (ulimit -Hn, LimitNOFILE=)",
        )
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def keep_private(directory: Path) -> None:
    """Close a directory of this user's to all others: what workers were given and printed lies in it."""
    known = directory.stat()
    if known.st_uid == os.geteuid() and known.st_mode & 0o077:
        directory.chmod(0o700)


def lock_directory(directory: Path) -> int:
    """Take a directory for this process; the lock is held while the returned descriptor is open."""
    path = directory / LOCK_NAME
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(fd, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise AlreadyLocked(f"the gpuward with pid {owner} works in {directory} already") from None
    except OSError as error:  # flock(2) names no file, and some network file systems have no locks (ENOLCK)
        os.close(fd)
        raise OSError(error.errno, f"cannot be locked ({error.strerror})", str(path)) from None
    with suppress(OSError):  # the disk may be full; the pid is for the reader of a refusal only
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def reap() -> None:
    """Collect every child that has ended: keepers, whose ends are on record, and orphans."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
