"""Runs one command of the operator's and tells how it ended. Bounded in time and output; decides nothing."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

OUTPUT_BYTES: Final = 2000
"""Of what it printed, the last."""

_TELLS_ITS_STATUS: Final = '"$@" >&2; echo "$?"'
"""The daemon collects every child that has ended, whichever it is: the exit code comes through a pipe."""


def run_hook(argv: Sequence[str], within_s: float) -> str:
    """Run a command to its end; return what went wrong as a sentence, nothing where it exited 0. Blocks."""
    try:
        child = subprocess.Popen(
            ["/bin/sh", "-c", _TELLS_ITS_STATUS, "sh", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return f"{argv[0]} could not be started: {error.strerror}"
    assert child.stdout is not None
    assert child.stderr is not None
    with child.stdout, child.stderr:
        status, printed = _until_status(child.stdout.fileno(), child.stderr.fileno(), time.monotonic() + within_s)
    if status is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if status == "0":
        return ""
    text = printed.decode(errors="replace").strip().rpartition("\n")[2]
    said = f": {''.join(c if c.isprintable() else '?' for c in text)}" if text else ""
    ended = f"exited with code {status}" if status else f"did not end within {within_s:g} s and was killed"
    return f"{argv[0]} {ended}{said}"


def _until_status(status_fd: int, output_fd: int, until_s: float) -> tuple[str | None, bytes]:
    """Read both pipes until the command has ended: what it left running may keep them open."""
    printed = b""
    watched = [status_fd, output_fd]
    while (left_s := until_s - time.monotonic()) > 0:
        readable, _, _ = select.select(watched, [], [], left_s)
        if output_fd in readable:
            more = os.read(output_fd, 65536)
            printed = (printed + more)[-OUTPUT_BYTES:]
            if not more:
                watched.remove(output_fd)
        elif status_fd in readable:
            return os.read(status_fd, 16).decode().strip() or None, printed
    return None, printed
