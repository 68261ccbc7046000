"""Text of unknown origin (names of processes, answers of workers) made fit for records, sockets and terminals."""

from __future__ import annotations

import json

import msgspec

SHOWN_CHARS_MAX = 200


def clean(text: str, max_chars: int = SHOWN_CHARS_MAX) -> str:
    r"""The text in printable characters, at most ``max_chars``: what is not printable as its escape.

    Controls, bidi marks and line breaks are such. Bytes that are not UTF-8, which surrogateescape (PEP 383) made
    ``\udcee``, are shown as ``\xee``.
    """
    shown = "".join(_shown(character) for character in text[: max_chars + 1])
    return shown if len(shown) <= max_chars else f"{shown[: max_chars - 3]}..."


def _shown(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def encoded(value: object) -> bytes:
    """JSON of a record; a character that no file can hold (a lone surrogate) becomes a question mark."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value), ensure_ascii=False).encode("utf-8", "replace")
