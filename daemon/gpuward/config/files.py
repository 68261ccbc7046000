"""A file that a person wrote, as text: read the same way by whoever reads it. Imports next to nothing: gpuctl does."""

from __future__ import annotations

import os
import stat

FILE_MAX_BYTES = 512 * 1024
"""Of a fleet file. Escaped as JSON this still fits the daemon's limit for one message, 1 MiB."""


def read_file(path: str, *, regular: bool = True) -> str:
    """Return the text of a file; OSError where it cannot be read, ValueError (see `text_of`) where it is no text.

    ``regular``: a pipe, a device or a directory is refused, so that reading ends.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_NONBLOCK if regular else 0))
    with open(fd, "rb") as file:  # noqa: PTH123 - opened without waiting
        if regular and not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is no regular file")
        return text_of(file.read(FILE_MAX_BYTES + 1))


def text_of(content: bytes) -> str:
    """Return text without a byte order mark, its lines ended by newlines; ValueError says what it is instead."""
    if len(content) > FILE_MAX_BYTES:
        raise ValueError(f"it is larger than {FILE_MAX_BYTES} bytes, which no fleet file is")
    at = content.find(b"\0")
    if at >= 0:
        raise ValueError(f"it is binary (a zero byte at {at}); a fleet file is text")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = f"byte {content[error.start]:#04x} at {error.start}"
        raise ValueError(f"it is not UTF-8 ({bad}); save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
