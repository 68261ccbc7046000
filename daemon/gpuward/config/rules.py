"""Ranges of single values: small functions that say what is wrong with a value of the right type, or None."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from gpuward.config.patterns import BadPattern, compiled

Rule = Callable[[object], str | None]
"""Given a value of the right type, return the end of the sentence ``KEY = VALUE: ...``, or None where it is right."""


PATTERN_CHARACTERS_MAX = 1000
WORDS_MAX = 1000
EXACT_MAX = 2**53
GPU_INDEX_MAX = 4095


def at_least(least: float) -> Rule:
    """Numbers from ``least`` on, as far as every program counts exactly (2**53)."""
    return between(least, EXACT_MAX)


def between(least: float, most: float) -> Rule:
    """Numbers from ``least`` to ``most``, both included."""
    limits = f"at least {_written(least)}" if most == EXACT_MAX else f"from {_written(least)} to {_written(most)}"

    def rule(value: object) -> str | None:
        inside = isinstance(value, int | float) and least <= value <= most
        return None if inside else f"must be {limits}"

    return rule


def _written(number: float) -> str:
    """A number as people write it; a size in bytes with its unit."""
    mib = 1024**2
    if isinstance(number, int) and number >= mib and number % mib == 0:
        return f"{number // mib}MiB ({number})"
    return f"{number:.12g}"


def above(limit: float, *, most: float = math.inf) -> Rule:
    """Numbers greater than ``limit``, at most ``most``."""
    limits = f"greater than {limit:g}" + ("" if most == math.inf else f" and at most {most:g}")

    def rule(value: object) -> str | None:
        inside = isinstance(value, int | float) and limit < value <= most
        return None if inside else f"must be {limits}"

    return rule


def share_of_one(value: object) -> str | None:
    """Numbers above 0, at most 1; what looks like a percentage is told as one."""
    wrong = above(0, most=1)(value)
    percent = wrong and isinstance(value, int | float) and 5 <= value <= 100
    return f"{wrong}; write {value / 100:g}" if percent and isinstance(value, int | float) else wrong


def size_bytes(text: str) -> int | None:
    """Bytes of a size as "40GiB", "512Mi" or "2.5TB"; None where it is none.

    A bare K, M, G or T is none: systemd takes it for a power of 1024, Kubernetes for one of 1000.
    """
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) ?(?:([kKMGT])(i?)B?|B)?", text.strip())
    if found is None or (found[2] and not found[3] and not text.strip().endswith("B")):
        return None
    power = "KMGT".index(found[2].upper()) + 1 if found[2] else 0
    unit = 1024 if found[3] else 1000
    return round(float(found[1]) * float(unit**power))


def printable_text(value: object) -> str | None:
    """Text of one printable line, not empty."""
    if not isinstance(value, str) or not value.strip():
        return "must not be empty; leave the key out instead"
    return None if value.isprintable() else "must be one line of printable characters"


def lines_of_text(value: object) -> str | None:
    """Lists of text of one printable line each."""
    wrong = (printable_text(item) for item in value) if isinstance(value, list | tuple) else ()
    return next((f"each {problem}" for problem in wrong if problem), None)


def arguments(value: object) -> str | None:
    """Lists of text that a process can be given, of a length that somebody has written."""
    if isinstance(value, list | tuple) and len(value) > WORDS_MAX:
        return f"has {len(value)} words; at most {WORDS_MAX} are taken"
    bad = isinstance(value, list | tuple) and any(isinstance(item, str) and "\0" in item for item in value)
    return "must not hold a NUL character" if bad else None


def devices(value: object) -> str | None:
    """Lists of GPU indices or UUIDs."""
    if not isinstance(value, list | tuple) or not value:
        return "names no GPU; leave the key out and the GPUs are chosen for you"
    for item in value:
        if isinstance(item, int) and not 0 <= item <= GPU_INDEX_MAX:
            return f"{item} is not a GPU index; indices start at 0"
        if isinstance(item, str) and (not item.strip() or item.strip().isdigit()):
            return f'"{item}" is no UUID; an index is written without quotes'
    return None


def http_url(value: object) -> str | None:
    """``http://`` or ``https://`` with a host."""
    if isinstance(value, str) and re.match(r"https?://[^/\s]+", value):
        return None
    return 'must be an http address, as "http://127.0.0.1:{port}/health"'


def regular_expression(value: object) -> str | None:
    """Patterns that can be searched in linear time."""
    if not isinstance(value, str) or not value:
        return "must be a regular expression that a log line matches"
    if len(value) > PATTERN_CHARACTERS_MAX:
        return f"must have at most {PATTERN_CHARACTERS_MAX} characters"
    try:
        compiled(value)
    except BadPattern as error:
        return f"must be a regular expression: {error}"
    return None


def absolute_path(such_as: str) -> Rule:
    """Paths from the root; ``such_as`` is an example."""

    def rule(value: object) -> str | None:
        right = isinstance(value, str) and value.startswith("/") and value.isprintable()
        return None if right else f"must be an absolute path, such as {such_as}"

    return rule
