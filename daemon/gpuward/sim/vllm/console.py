"""What the simulated worker says: vLLM 0.32.0's lines, so that whatever reads a log meets the real texts."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from typing import Final

VERSION: Final = "0.32.0"
_STDOUT: Final = 1


class Console:
    """Log lines of one process of the tree, each with its prefix, as in ``(EngineCore pid=12) INFO ...``."""

    def __init__(self, process: str) -> None:
        self._prefix = f"({process} pid={os.getpid()})"

    def info(self, where: str, text: str) -> None:
        """Write an INFO line; ``where`` is vLLM's file and line."""
        self._log("INFO", where, text)

    def warning(self, where: str, text: str) -> None:
        """Write a WARNING line."""
        self._log("WARNING", where, text)

    def error(self, where: str, lines: Iterable[str]) -> None:
        """Write ERROR lines, one per line of a traceback."""
        for line in lines:
            self._log("ERROR", where, line)

    def plain(self, lines: Iterable[str]) -> None:
        """Write lines with the process prefix only, as an uncaught traceback has."""
        say(*(f"{self._prefix} {line}" for line in lines))

    def _log(self, level: str, where: str, text: str) -> None:
        say(f"{self._prefix} {level} {time.strftime('%m-%d %H:%M:%S')} [{where}] {text}")


def say(*lines: str) -> None:
    """Write whole lines in one go: other processes of the tree write too. A closed pipe is no matter."""
    with contextlib.suppress(OSError):
        os.write(_STDOUT, "".join(f"{line}\n" for line in lines).encode())


def traceback(file: str, line: int, function: str, code: str, error: str) -> tuple[str, ...]:
    """Return a one-frame traceback that ends with ``error``."""
    return (
        "Traceback (most recent call last):",
        f'  File ".../site-packages/vllm/{file}", line {line}, in {function}',
        f"    {code}",
        *error.splitlines(),
    )
