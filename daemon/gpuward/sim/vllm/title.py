"""What a process calls itself in ``ps`` and ``/proc``, set without a compiled package."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_PR_SET_NAME: Final = 15
_COMM_BYTES: Final = 15


def set_title(title: str) -> None:
    """Make ``title`` the command line and the (15 byte) name of this process, as setproctitle does for vLLM's children.

    The kernel shows just the text at the start of the argument area once the area's last byte is not NUL
    (fs/proc/base.c, get_mm_proctitle). A title longer than the area is cut.
    """
    start, end = _argument_area()
    length = end - start
    text = title.encode()[: max(0, length - 2)]
    if length > len(text) + 1:
        ctypes.memmove(start, text.ljust(length - 1, b"\0") + b".", length)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, ctypes.c_char_p(title.encode()[:_COMM_BYTES]), 0, 0, 0)


def _argument_area() -> tuple[int, int]:
    """Addresses arg_start and arg_end, fields 48 and 49 of ``/proc/self/stat`` (proc(5))."""
    with open(f"/proc/{os.getpid()}/stat", "rb") as file:  # noqa: PTH123  light imports
        fields = file.read().rpartition(b") ")[2].split()
    return int(fields[45]), int(fields[46])
