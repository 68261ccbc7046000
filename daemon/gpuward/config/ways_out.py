"""What to write instead of a value of the wrong type, where that is plain. Sentences only."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from typing import Final, Literal, get_args, get_origin

import msgspec
from msgspec import structs

_SECONDS: Final = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_OF_CHOICES: Final = {"engine": '; for any other program write engine = "command" and command = ["PROGRAM", ...]'}
_WORDS_MAX: Final = 10


def way_out(key: str, value: object, expected: object) -> str:
    """The repair, with what parts it from the sentence before; empty where it is not plain."""
    choices = get_args(expected)
    if not isinstance(value, str):
        return ""
    if get_origin(expected) is Literal:
        near = difflib.get_close_matches(value, [str(choice) for choice in choices], n=1)
        return f'; did you mean "{near[0]}"?' if near else _OF_CHOICES.get(key, "")
    if get_origin(expected) is tuple:
        return _as_list(key, value, of_numbers=int in get_args(choices[0]) or choices[0] is int)
    if isinstance(expected, type) and issubclass(expected, msgspec.Struct):
        return _in_the_table(key, value, expected)
    if expected in {int, float} or int in choices or float in choices:
        whole = expected is int or (int in choices and float not in choices)
        return _as_number(key, value.strip(), whole=whole)
    return ""


def _as_list(key: str, value: str, *, of_numbers: bool) -> str:
    """Return the words of a command line, or the numbers between commas."""
    parts = value.replace(",", " ").split()
    if of_numbers and parts and all(part.isascii() and part.isdecimal() and len(part) < 5 for part in parts):
        return f"; write {key} = [{', '.join(str(int(part)) for part in parts[:_WORDS_MAX])}]"
    try:
        words = shlex.split(value)
    except ValueError:
        words = []
    if not words or len(words) > _WORDS_MAX or not value.isprintable():
        return "; write each word in quotes of its own"
    return f"; write {key} = {json.dumps(words, ensure_ascii=False)}"


def _in_the_table(key: str, value: str, table: type[msgspec.Struct]) -> str:
    """Return the key of a table that takes this word."""
    taking = [info.encode_name for info in structs.fields(table) if value in get_args(info.type)]
    return f'; write {key}.{taking[0]} = "{value}"' if taking else ""


def _as_number(key: str, text: str, *, whole: bool) -> str:
    """Return the number that is meant by a text: without quotes, of a percentage, of a time, of thousands."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([a-zA-Z%]*)", text, re.ASCII)
    number, unit = (float(found[1]), found[2]) if found else (0.0, "")
    if found and unit == "%" and not whole:
        return f"; write {key} = {number / 100:g}"
    if found and key.endswith("-s") and unit.lower() in _SECONDS:
        return f"; write {key} = {number * _SECONDS[unit.lower()]:.12g} (seconds)"
    if found and unit.lower() == "k" and whole and number.is_integer():
        return f"; write {key} = {number * 1024:.12g} (or {number * 1000:.12g})"
    as_toml = re.fullmatch(r"-?(0|[1-9]\d{0,17})" + ("" if whole else r"(\.\d{1,17})?"), text, re.ASCII)
    return f"; write {key} = {text} without quotes" if as_toml else ""
