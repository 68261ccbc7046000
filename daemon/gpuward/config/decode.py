"""Strict decoding of one table into one record, key by key, so that every wrong key is named and not only the first.

The types are those of the record, checked by msgspec without any conversion: ``"2"``, ``true`` and ``1.5`` are no
whole numbers. Ranges come as rules (`rules`). Nothing here knows what a pool or a host is.
"""

from __future__ import annotations

import difflib
import json
import math
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import structs

from gpuward.config.errors import one_line
from gpuward.config.fleet import Remark
from gpuward.config.rules import Rule
from gpuward.config.secrets import masked_value
from gpuward.config.ways_out import way_out

Record = TypeVar("Record", bound=msgspec.Struct)
Table = Mapping[str, object]

_NAMES_OF_TYPES: Mapping[object, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_SHOWN_MAX_CHARACTERS = 60

GUESSES_MAX = 20
"""Unknown keys for which a near one is looked for: nobody reads further."""


@dataclass(frozen=True, slots=True)
class Section:
    """Where in the file a key stands: ``label`` for sentences, ``pool`` for the remark.

    ``written_as`` maps keys to what the file calls them, where an importer has renamed them.
    """

    label: str
    pool: str | None = None
    written_as: Mapping[str, str] = field(default_factory=dict)

    def remark(self, code: str, sentence: str) -> Remark:
        """A remark about this section, that names it."""
        return Remark(code=code, pool=self.pool, message=one_line(f"{self.label}: {sentence}"))

    def bad_value(self, key: str, value: object, must: str) -> Remark:
        """A remark about one value; ``must`` goes on from ``KEY = VALUE:`` and gives the way out."""
        return self.remark("bad-value", f"{self.written_as.get(key, key)} = {shown(masked_value(key, value))}: {must}")


def decode_table(
    table: Table,
    record: type[Record],
    section: Section,
    rules: Mapping[str, Rule],
    found: list[Remark],
    *,
    not_keys: Collection[str] = (),
    elsewhere: Callable[[str, object], str] = lambda key, value: "",  # noqa: ARG005
) -> dict[str, object]:
    """Return the keys of ``table`` whose values are right; what is wrong is added to ``found``.

    ``rules`` are by field name. ``not_keys``: fields of the record that no file may set.
    ``elsewhere`` says where an unknown key belongs, if it knows.
    """
    fields = {info.encode_name: info for info in structs.fields(record) if info.name not in not_keys}
    right: dict[str, object] = {}
    for key, value in table.items():
        info = fields.get(key)
        if info is None:
            guesses = len(found) < GUESSES_MAX
            where = elsewhere(key, masked_value(key, value)) if guesses else ""
            found.append(unknown_key(key, value, fields if guesses else (), section, where=where))
            continue
        wrong = _type_problem(key, value, info.type) or _range_problem(value, rules.get(info.name))
        if wrong:
            found.append(section.bad_value(key, value, wrong))
        else:
            right[key] = value
    return right


def unknown_key(key: str, value: object, known: Collection[str], section: Section, *, where: str = "") -> Remark:
    """Name the key, and where it belongs or the nearest known one or, where none is near, all of them."""
    if where:
        return section.remark("unknown-key", f"{clipped(key)} = {shown(masked_value(key, value))}: {where}")
    near = difflib.get_close_matches(key.replace("_", "-").lower()[:_SHOWN_MAX_CHARACTERS], known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; known keys: {', '.join(sorted(known))}" if known else ""
    return section.remark("unknown-key", f"{clipped(key)} = {shown(masked_value(key, value))}: unknown key{hint}")


def clipped(text: str) -> str:
    """Text cut after 60 characters."""
    return text if len(text) <= _SHOWN_MAX_CHARACTERS else text[: _SHOWN_MAX_CHARACTERS - 3] + "..."


def shown(value: object) -> str:
    """A value as it stands in a file, cut after 60 characters."""
    if isinstance(value, float):
        return repr(value)
    return clipped(json.dumps(value, ensure_ascii=False, default=str))


def _type_problem(key: str, value: object, expected: object) -> str | None:
    try:
        msgspec.convert(value, expected)
    except msgspec.ValidationError:
        if get_origin(expected) is tuple and isinstance(value, list):
            wrong = next(item for item in value if not _is_of_type(item, get_args(expected)[0]))
            kind = "a string" if isinstance(wrong, str) else _kind_of(wrong)
            return f"must be {_described(expected)}; {shown(wrong)} is {kind}"
        one = "one string" if isinstance(value, str) and get_origin(expected) is tuple else _kind_of(value)
        kind = "" if _is_choice(value, expected) else f", not {one}"
        return f"must be {_described(expected)}{kind}{way_out(key, value, expected)}"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    return None


def _is_of_type(value: object, expected: object) -> bool:
    try:
        msgspec.convert(value, expected)
    except msgspec.ValidationError:
        return False
    return True


def _range_problem(value: object, rule: Rule | None) -> str | None:
    return rule(value) if rule is not None else None


def _is_choice(value: object, expected: object) -> bool:
    return isinstance(value, str) and get_origin(expected) is Literal


def _described(expected: object) -> str:
    origin, arguments = get_origin(expected), get_args(expected)
    if origin is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in arguments)
    if origin in {Union, types.UnionType}:
        return " or ".join(_described(choice) for choice in arguments if choice is not types.NoneType)
    if origin is tuple:
        return f"a list of {_plural(arguments[0])}"
    if origin is dict:
        return f"a table, each value {_described(arguments[1])}"
    return _NAMES_OF_TYPES.get(expected, "a table")


def _plural(expected: object) -> str:
    choices = get_args(expected) or (expected,)
    return " or ".join("whole numbers" if choice is int else "strings" for choice in choices)


def _kind_of(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a whole number" if isinstance(value, int) else "a fraction"
    if isinstance(value, str):
        return "text" if len(value) <= _SHOWN_MAX_CHARACTERS else "long text"
    if isinstance(value, Mapping):
        return "a table"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
