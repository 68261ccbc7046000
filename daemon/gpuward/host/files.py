"""Files of this host that may not be what they should be: opened without waiting, and never read beyond a limit.

In the place of a record may lie a pipe that nobody writes to, a device without an end, or gigabytes of zeros.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from gpuward.host.crash_points import boundary

RECORD_MAX_BYTES = 64 * 1024**2
"""Of one file of the state directory. A command to 10,000 workers, the largest that there is, comes to 2 MiB."""

RUN_FILE_MAX_BYTES = 4 * 1024**2
"""Of one file of a run's directory."""


class NoRecord(OSError):
    """What lies there is no regular file, or larger than any record is."""


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file; OSError where it cannot be read, NoRecord where it is none of ours."""
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(max_bytes + 1) if size <= max_bytes else b""
        if max(size, len(content)) > max_bytes:
            raise NoRecord(errno.EFBIG, f"larger than {max_bytes} bytes", str(path))
        return content


def open_regular(path: Path) -> int:
    """Open a regular file for reading and return its descriptor; NoRecord at once where it is something else."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NoRecord(errno.EINVAL, "not a regular file", str(path))
    return fd


def create_regular(path: Path) -> int:
    """Open an empty regular file for writing and return its descriptor; what is something else is removed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.ftruncate(fd, 0)
            return fd
        os.close(fd)
    except OSError as error:
        if error.errno not in {errno.ENXIO, errno.ELOOP}:  # a pipe without a reader, a link
            raise
    path.unlink()
    return os.open(path, flags | os.O_EXCL, 0o600)


def write_whole(path: Path, content: bytes, *, durable: bool) -> None:
    """Write a file so that a reader, or the next boot, finds the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.new")
    with open(create_regular(temporary), "wb") as file:
        file.write(content)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    boundary("before rename")
    temporary.rename(path)
    if durable:
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
