"""Reads the captured output of a run once, in order, while the keeper writes it and moves it aside.

It holds the file that it reads open, so that nothing is lost to it when that is moved, or even overwritten, meanwhile:
only what was both written and overwritten between two calls. Writes nothing, decides nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from gpuward.config.patterns import compiled
from gpuward.host.files import NoRecord, open_regular
from gpuward.host.logs import decoded

BLOCK_BYTES: Final = 256 * 1024
LINE_BYTES_MAX: Final = 4096
"""What stands behind this in one line is not looked at: an endless line must not become endless memory."""

WATCH_BYTES_MAX: Final = 1024 * 1024


class LogReader:
    """Where in the output of one run a reader is. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._moved = Path(f"{path}.1")
        self._file: BinaryIO | None = None
        self._rest = b""

    def unread_bytes(self) -> int:
        """Return how much there is to read, as far as the newest file and the one that is being read tell."""
        newest = _stat(self._path)
        size = newest.st_size if newest is not None else 0
        if self._file is None:
            return size
        own = os.fstat(self._file.fileno())
        left = own.st_size - self._file.tell()
        return left if newest is not None and os.path.samestat(own, newest) else left + size

    def lines(self, max_bytes: int | None = None) -> Iterator[str]:
        """Return the lines that have been finished since the last call, the first 4096 bytes of each.

        One that begins with a carriage return goes on with the line before.
        """
        read_bytes = 0
        for block in self._blocks():
            *whole, self._rest = _split(self._rest, block)
            yield from map(decoded, whole)
            read_bytes += len(block)
            if max_bytes is not None and read_bytes >= max_bytes:
                return

    def last_line(self) -> str:
        """Return what stands behind the last end of a line."""
        return decoded(self._rest)

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _blocks(self) -> Iterator[bytes]:
        if self._file is None and not self._open(self._moved) and not self._open(self._path):
            return
        while True:
            was_moved = not self._is_at(self._path)  # then the keeper writes to it no more: its end is final
            while block := self._read():
                yield block
            if was_moved:
                if not self._open_next():
                    return
            elif self._is_at(self._path):
                return

    def _read(self) -> bytes:
        return self._file.read(BLOCK_BYTES) if self._file is not None else b""

    def _open_next(self) -> bool:
        """Go on with the file behind the one that was moved; False where there is none yet."""
        return self._open(self._path if self._is_at(self._moved) else self._moved)

    def _is_at(self, path: Path) -> bool:
        found = _stat(path)
        return found is not None and self._file is not None and os.path.samestat(os.fstat(self._file.fileno()), found)

    def _open(self, path: Path) -> bool:
        try:
            opened = open(open_regular(path), "rb", buffering=0)  # noqa: PTH123, SIM115 - a descriptor, for long
        except (FileNotFoundError, NoRecord):
            return False
        self.close()
        self._file = opened
        return True


class LogWatch:
    """Looks for a pattern in what was written since it last looked. `found` is for any thread but that of the loop."""

    def __init__(self, path: Path, pattern: str) -> None:
        """Watch the capture at ``path``, from its first byte kept, for the regular expression ``pattern``."""
        self._reader = LogReader(path)
        self._pattern = compiled(pattern)
        self._lock = threading.Lock()

    def found(self) -> bool:
        """Whether a line has matched; reads about 1 MiB, so what a flood wrote is looked at over several calls."""
        with self._lock:
            if any(map(self._matches, self._reader.lines(WATCH_BYTES_MAX))):
                return True
            return self._matches(self._reader.last_line())  # a prompt that waits for input has no end of line

    def close(self) -> None:
        """Let the file go."""
        with self._lock:
            self._reader.close()

    def _matches(self, line: str) -> bool:
        return bool(self._pattern.search(line.removeprefix("\r")))


def _split(rest: bytes, block: bytes) -> list[bytes]:
    """Return the lines of ``rest`` + ``block``, the unfinished one last; each cut where nobody looks any more.

    A carriage return within a line ends one too, as progress bars use it; what follows it keeps it as its first byte,
    for it is no line of its own: a client's text may hold one.
    """
    lines = (rest + block).split(b"\n")
    if b"\r" not in block and not rest.startswith(b"\r"):
        return [line[:LINE_BYTES_MAX] for line in lines]
    *whole, last = lines
    pieces = [line.removesuffix(b"\r").split(b"\r") for line in whole] + [last.split(b"\r")]
    marked = [piece for first, *others in pieces for piece in (first, *(b"\r" + other for other in others))]
    if rest.startswith(b"\r"):  # its begin is out already
        del marked[0]
    return [piece[:LINE_BYTES_MAX] for piece in marked]


def _stat(path: Path) -> os.stat_result | None:
    with suppress(FileNotFoundError):
        return path.stat()
    return None
