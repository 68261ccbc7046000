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

REMEMBERED = 4096
"""Ends of children that nobody has asked for yet."""

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


class Reaper:
    """Collects every child that has ended: keepers and orphans; the newest ends are remembered."""

    def __init__(self) -> None:
        self._codes: dict[int, int] = {}

    def reap(self) -> None:
        """Collect those that have ended by now."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])
                if len(self._codes) > REMEMBERED:
                    del self._codes[next(iter(self._codes))]

    def code(self, pid: int) -> int | None:
        """How a child has ended: its exit code, or a signal as a negative number; None for who was none. Told once."""
        self.reap()
        return self._codes.pop(pid, None)
