"""The highest number that runs of each worker have had, from all that runs leave behind. Reads only; decides nothing.

A number that came again would have two lives share a log, a record and a cause. So it counts what survives a worker
that left the fleet (its history, with a counter beside it, and its logs), and what survives a lost state (run
directories, logs).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

COUNTER: Final = "last-run"
DIGITS_MAX: Final = 9
"""A longer number is no run's."""


def used_runs(roots: Iterable[Path]) -> dict[str, int]:
    """Return the highest number of each worker below these directories, of which each has ``POOL/INDEX/...``."""
    highest: dict[str, int] = {}
    for root in roots:
        for worker, number in _numbers(root):
            highest[worker] = max(number, highest.get(worker, 0))
    return highest


def _numbers(root: Path) -> Iterator[tuple[str, int]]:
    with suppress(OSError):
        for directory in root.glob("*/*"):
            if not directory.name.isdecimal():
                continue
            worker = f"{directory.parent.name}/{directory.name}"
            for path in directory.iterdir():
                number = _counted(path) if path.name == COUNTER else path.name.partition(".")[0]
                if number.isascii() and number.isdecimal() and len(number) <= DIGITS_MAX:
                    yield worker, int(number)


def _counted(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(64).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
