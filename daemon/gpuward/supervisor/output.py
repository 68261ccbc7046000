"""One run's output, read for its cause while the run goes on, so that no cause is lost when old output is overwritten.

It also makes the end of a run quick to judge: only what was written last is still to be read then. Decides nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gpuward.host.log_reader import LogReader
from gpuward.policy.diagnosis.causes import Signature
from gpuward.policy.diagnosis.log_findings import Findings
from gpuward.policy.diagnosis.verdict import nothing_found

AHEAD_BYTES: Final = 4 * 1024 * 1024
AHEAD_RATIO: Final = 0.25
"""Unread output of this size, or of this share of a full file, is read; an ordinary run is read when it has ended."""

AT_ONCE_BYTES: Final = 32 * 1024 * 1024
"""At most this per call: no flood keeps another run waiting for ever."""

LINES_PER_BREATH: Final = 2000
BREATH_S: Final = 0.002
"""Pause between so many lines while the run lives: the loop's thread needs the interpreter more."""


class LogReading:
    """`behind` is for the loop, `catch_up` and `finish` for any other thread."""

    def __init__(self, path: Path, own: tuple[Signature, ...], max_bytes: int) -> None:
        """Read the capture at ``path``, in files of ``max_bytes``, with signatures ``own`` before those of gpuward."""
        self._ahead_bytes = min(AHEAD_BYTES, int(max_bytes * AHEAD_RATIO))
        self._findings = nothing_found(own)
        self._reader = LogReader(path)
        self._lock = threading.Lock()
        self._closed = False

    def behind(self) -> bool:
        """Whether there is much to read."""
        return self._reader.unread_bytes() >= self._ahead_bytes

    def catch_up(self) -> None:
        """Read what has come, without haste."""
        with self._lock:
            if self._closed:
                return
            self._findings.read(_without_haste(self._reader.lines(AT_ONCE_BYTES)))

    def finish(self) -> Findings:
        """Read the rest, and let the file go; return what was found in all of it."""
        with self._lock:
            self._findings.read(self._reader.lines())
            if line := self._reader.last_line():
                self._findings.read((line,))
        self.close()
        return self._findings

    def close(self) -> None:
        """Let the file go, unread."""
        with self._lock:
            self._closed = True
            self._reader.close()


def _without_haste(lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        yield line
        if number % LINES_PER_BREATH == 0:
            time.sleep(BREATH_S)
