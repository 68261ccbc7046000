"""Waiting in tests with real processes: a condition with a bound, never a fixed pause."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T], *, within_s: float, every_s: float = 0.02) -> T:
    """Return the first true value of ``condition``; AssertionError with its last value after ``within_s`` seconds."""
    until_s = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < until_s, f"not within {within_s} s; last seen: {value!r}"
        time.sleep(every_s)
