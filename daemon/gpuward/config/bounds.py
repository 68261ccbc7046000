"""What no file that a person wrote comes to: checked before and after parsing, in one pass each.

Parsers of the standard library take quadratic time for some texts and return numbers that cannot be printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from gpuward.config.errors import ConfigError, one_line
from gpuward.config.fleet import Remark

CHARACTERS_MAX: Final = 512 * 1024
VALUES_MAX: Final = 20_000
KEY_PARTS_MAX: Final = 64
DEPTH_MAX: Final = 32
TABLES_MAX: Final = 2_000
NUMBER_BITS_MAX: Final = 256

_PART: Final = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')"""
_DOTTED: Final = re.compile(rf"{_PART}(?:[ \t]*+\.[ \t]*+{_PART})*+")
"""Takes words without dots too: what it has matched it does not look at again, so that it is linear."""
_UNUSABLE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Controls but for newline and tab, which values of several lines have; halves of characters (surrogates)."""

_HEADER: Final = re.compile(r"^[ \t]*+\[", re.MULTILINE)


def check_text(text: str, *, file: str) -> None:
    """Refuse a TOML text that is too much to parse: ConfigError (bad-value)."""
    if len(text) > CHARACTERS_MAX:
        _refuse(file, f"{len(text)} characters; at most {CHARACTERS_MAX} are read")
    values = text.count(",") + text.count("=")
    if values > VALUES_MAX:
        _refuse(file, f"about {values} values; at most {VALUES_MAX} are read")
    tables = sum(1 for _ in _HEADER.finditer(text))
    if tables > TABLES_MAX:
        _refuse(file, f"{tables} tables; at most {TABLES_MAX} are read")
    parts = max((match[0].count(".") + 1 for match in _DOTTED.finditer(text)), default=0)
    if parts > KEY_PARTS_MAX:
        _refuse(file, f"a dotted key of {parts} parts; a fleet needs four")


def check_document(document: Mapping[str, object], *, file: str) -> None:
    """Refuse values that cannot be shown, stored or given to a process: ConfigError (bad-value) names the key."""
    problems = [problem for path, value in _walk(document) if (problem := _problem(path, value))]
    if problems:
        raise ConfigError(file, [_remark(problem) for problem in problems[:10]])


def _walk(document: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Every value with its path, and every key as a value of its table; without recursion."""
    waiting: list[tuple[str, int, object]] = [("", 0, document)]
    while waiting:
        path, depth, value = waiting.pop()
        if depth > DEPTH_MAX:
            yield path, RecursionError
        elif isinstance(value, Mapping):
            yield from ((path or "top level", key) for key in value)
            waiting += [(f"{path}.{key}" if path else str(key), depth + 1, item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(path, depth + 1, item) for item in value]
        else:
            yield path, value


def _problem(path: str, value: object) -> str:
    if value is RecursionError:
        return f"{path}: nested more than {DEPTH_MAX} deep; a fleet needs three levels"
    if isinstance(value, int) and value.bit_length() > NUMBER_BITS_MAX:
        return f"{path}: a number of {value.bit_length()} bits; no setting needs more than 63"
    unusable = _UNUSABLE.search(value) if isinstance(value, str) else None
    if unusable is not None:
        return f"{path}: holds the character U+{ord(unusable[0]):04X}; a setting is printable text"
    return ""


def _remark(problem: str) -> Remark:
    path, _, rest = problem.partition(": ")
    shown = path if len(path) <= 80 else f"{path[:77]}..."
    return Remark(code="bad-value", pool=None, message=one_line(f"{shown}: {rest}"))


def _refuse(file: str, message: str) -> None:
    raise ConfigError(file, [Remark(code="bad-value", pool=None, message=message)])
