"""Reading the captured output of a run. The keeper writes it; nothing here does.

The keeper writes ``PATH`` and, when that is full, moves it to ``PATH.1`` over what was there and begins anew. So what
is kept is one stream in at most two files, and its offsets count bytes from the first one kept: those of a byte do not
change at the first move; at every later one they sink by the size of the file that was overwritten, which is that of
``PATH.1`` (full files are of one size, give or take one write). A reader that follows is therefore ahead of the stream
after such a move, by which it is known, and goes on at the place that it meant. Only one that was more than a whole
file behind misses that move, and what it had not read is gone anyway.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from gpuward.host.files import NoRecord, open_regular

CHARACTER_BYTES_MAX: Final = 4
OPEN_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the stream, in bytes of it: from ``offset`` to ``next_offset``, of ``size`` in all.

    ``offset`` is not the one that was asked for where that is gone. Bytes that are no UTF-8 are replaced in ``text``.
    """

    text: str
    offset: int
    next_offset: int
    size: int


def size(path: Path | str) -> int:
    """Return how many bytes are kept; 0 where there is no capture."""
    with _opened(path) as stream:
        return stream.size


def tail(path: Path | str, lines: int, max_bytes: int) -> Chunk:
    """Return the last ``lines`` lines, and of those what fits into ``max_bytes``; a last line may be unfinished."""
    with _opened(path) as stream:
        start = max(0, stream.size - max(max_bytes, CHARACTER_BYTES_MAX))
        kept = stream.read(start, stream.size - start)
    whole = kept.find(b"\n") + 1 if start > 0 else 0  # before it stands the rest of a line that was cut off
    first = _last_lines(kept, whole, lines)
    return _chunk(kept[first:], start + first, stream.size)


def read_from(path: Path | str, offset: int, max_bytes: int) -> Chunk:
    """Return what stands from ``offset`` on, at most ``max_bytes`` but at least one character where there is one."""
    with _opened(path) as stream:
        start = stream.resolve(offset)
        return _chunk(stream.read(start, max(max_bytes, CHARACTER_BYTES_MAX)), start, stream.size)


@dataclass(frozen=True, slots=True)
class _Part:
    file: BinaryIO
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class _Stream:
    """The kept files in order, as they were when they were opened."""

    parts: tuple[_Part, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def resolve(self, offset: int) -> int:
        """Return where ``offset`` is now."""
        if offset <= self.size:
            return max(0, offset)
        moved = self.parts[0].size if len(self.parts) > 1 else self.size
        return min(offset - moved, self.size)

    def read(self, start: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``start``."""
        found = b""
        for part in self.parts:
            begin, end = max(start, part.start), min(start + count, part.start + part.size)
            if begin < end:
                part.file.seek(begin - part.start)
                found += part.file.read(end - begin)
        return found


@contextmanager
def _opened(path: Path | str) -> Iterator[_Stream]:
    current, moved = Path(path), Path(f"{path}.1")
    with ExitStack() as stack:
        for _ in range(OPEN_ATTEMPTS):
            files = tuple(_files(stack, (moved, current)))
            if not files or _is_still(files[0], moved if len(files) > 1 else current):
                break  # else the keeper moved a file while they were opened: one would be missing
        parts: list[_Part] = []
        for file in files:
            start = parts[-1].start + parts[-1].size if parts else 0
            parts.append(_Part(file, start, file.seek(0, 2)))
        yield _Stream(tuple(parts))


def _files(stack: ExitStack, paths: Iterable[Path]) -> Iterator[BinaryIO]:
    for path in paths:
        with suppress(FileNotFoundError, NoRecord):
            yield stack.enter_context(open(open_regular(path), "rb"))  # noqa: PTH123, SIM115 - a descriptor


def _is_still(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _last_lines(data: bytes, begin: int, lines: int) -> int:
    """Return where the last ``lines`` lines of ``data`` begin, not before ``begin``."""
    position = len(data) - data.endswith(b"\n")
    if lines <= 0:
        return len(data)
    for _ in range(lines):
        position = data.rfind(b"\n", begin, position)
        if position < 0:
            return begin
    return position + 1


def decoded(line: bytes) -> str:
    """Return the text of bytes that may be no UTF-8."""
    return line.decode("utf-8", "replace")


def _chunk(found: bytes, offset: int, total: int) -> Chunk:
    """Return ``found`` without a character that is cut at its end: the next chunk has it whole."""
    whole = _whole_characters(found) or found
    return Chunk(decoded(whole), offset, offset + len(whole), total)


def _whole_characters(found: bytes) -> bytes:
    for back, byte in enumerate(reversed(found[-CHARACTER_BYTES_MAX:]), 1):
        if byte & 0b1100_0000 != 0b1000_0000:  # the first byte of its character, it tells the length
            length = 4 if byte >= 0b1111_0000 else 3 if byte >= 0b1110_0000 else 2 if byte >= 0b1100_0000 else 1
            return found[:-back] if length > back else found
    return found
