"""Strict decoding of one table into one record, key by key, so that every wrong key is named and not only the first.

The types are those of the record, checked by msgspec without any conversion: ``"2"``, ``true`` and ``1.5`` are no
whole numbers. Ranges come as rules (`rules`). Nothing here knows what a pool or a host is.
"""

from __future__ import annotations

import difflib
import json
import math
import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import structs

from gpuward.config.errors import one_line
from gpuward.config.fleet import Remark
from gpuward.config.rules import Rule

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
        return self.remark("bad-value", f"{self.written_as.get(key, key)} = {shown(value)}: {must}")


def decode_table(
    table: Table,
    record: type[Record],
    section: Section,
    rules: Mapping[str, Rule],
    found: list[Remark],
    *,
    not_keys: Collection[str] = (),
) -> dict[str, object]:
    """Return the keys of ``table`` whose values are right; what is wrong is added to ``found``.

    ``rules`` are by field name. ``not_keys``: fields of the record that no file may set.
    """
    fields = {info.encode_name: info for info in structs.fields(record) if info.name not in not_keys}
    right: dict[str, object] = {}
    for key, value in table.items():
        info = fields.get(key)
        if info is None:
            found.append(unknown_key(key, value, fields if len(found) < GUESSES_MAX else (), section))
            continue
        wrong = _type_problem(key, value, info.type) or _range_problem(value, rules.get(info.name))
        if wrong:
            found.append(section.bad_value(key, value, wrong))
        else:
            right[key] = value
    return right


def unknown_key(key: str, value: object, known: Collection[str], section: Section) -> Remark:
    """Name the key, and the nearest known one or, where none is near, all of them."""
    near = difflib.get_close_matches(key.replace("_", "-").lower()[:_SHOWN_MAX_CHARACTERS], known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; known keys: {', '.join(sorted(known))}" if known else ""
    return section.remark("unknown-key", f"{clipped(key)} = {shown(value)}: unknown key{hint}")


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
        kind = "" if _is_choice(value, expected) else f", not {_kind_of(value)}"
        return f"must be {_described(expected)}{kind}{_way_out(key, value, expected)}"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    return None


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
        return f"a list, each {_described(arguments[0])}"
    if origin is dict:
        return f"a table, each value {_described(arguments[1])}"
    return _NAMES_OF_TYPES.get(expected, "a table")


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


def _way_out(key: str, value: object, expected: object) -> str:
    """The repair, where it is plain: quotes around a number, a list of one, a word near a choice."""
    choices = get_args(expected)
    if isinstance(value, str) and (expected in {int, float} or int in choices or float in choices):
        try:
            float(value)
        except ValueError:
            return ""
        return f"; write {key} = {value.strip()} without quotes"
    if _is_choice(value, expected):
        near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
        return f'; did you mean "{near[0]}"?' if near else ""
    if isinstance(value, str) and get_origin(expected) is tuple:
        return f"; write {key} = [{shown(value)}]"
    return ""
