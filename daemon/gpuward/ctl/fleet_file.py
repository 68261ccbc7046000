"""Reads a fleet file for the daemon, which may not be able to read it itself."""

from __future__ import annotations

import os
import sys

from gpuward.control.protocol import EXIT_REFUSED, EXIT_USAGE
from gpuward.ctl.trouble import Trouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpuward.control.documents import FleetText

FILE_MAX_BYTES = 512 * 1024
"""Escaped as JSON this still fits the daemon's limit for one message, 1 MiB."""


def read_fleet_file(path: str) -> FleetText:
    """Return text, name and absolute directory of ``path`` (``-``: stdin); Trouble where that cannot be.

    Exit 2 where there is no such file, 6 where it is none of ours, as for every other bad fleet file.
    """
    try:
        content = _content(path)
    except IsADirectoryError:
        raise Trouble(f"cannot read {path}: it is a directory; name the fleet file in it", EXIT_USAGE) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Trouble(f"cannot read {path}: {reason}", EXIT_USAGE) from None
    if len(content) > FILE_MAX_BYTES:
        message = f"cannot use {path}: it is larger than {FILE_MAX_BYTES} bytes, which no fleet file is"
        raise Trouble(message, EXIT_REFUSED)
    at = content.find(b"\0")
    if at >= 0:
        raise Trouble(f"cannot use {path}: it is binary (a zero byte at {at}); a fleet file is text", EXIT_REFUSED)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = f"byte {content[error.start]:#04x} at {error.start}"
        raise Trouble(f"cannot use {path}: it is not UTF-8 ({bad}); save it as UTF-8", EXIT_REFUSED) from None
    if path == "-":
        return {"text": _with_plain_line_ends(text), "name": "stdin", "directory": os.getcwd()}  # noqa: PTH109
    directory, name = os.path.split(os.path.abspath(path))  # noqa: PTH100 - pathlib costs 3 ms
    return {"text": _with_plain_line_ends(text), "name": name, "directory": directory}


def _content(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read(FILE_MAX_BYTES + 1)
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read(FILE_MAX_BYTES + 1)


def _with_plain_line_ends(text: str) -> str:
    """Return what reading in text mode would give, so that the daemon knows the file again."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
