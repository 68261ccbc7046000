"""Reads a fleet file for the daemon, which may not be able to read it itself."""

from __future__ import annotations

import os
import sys

from gpuward.config.files import FILE_MAX_BYTES, text_of
from gpuward.control.protocol import EXIT_REFUSED, EXIT_USAGE
from gpuward.ctl.trouble import Trouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpuward.control.documents import FleetText


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
    try:
        text = text_of(content)
    except ValueError as error:
        raise Trouble(f"cannot use {path}: {error}", EXIT_REFUSED) from None
    if path == "-":
        return {"text": text, "name": "stdin", "directory": os.getcwd()}  # noqa: PTH109
    directory, name = os.path.split(os.path.abspath(path))  # noqa: PTH100 - pathlib costs 3 ms
    return {"text": text, "name": name, "directory": directory}


def _content(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read(FILE_MAX_BYTES + 1)
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read(FILE_MAX_BYTES + 1)
