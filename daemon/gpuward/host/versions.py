"""The format of what survives the daemon, and how a file of an earlier version is brought up to this one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import msgspec

VERSION = 1
"""Format of every file here. A file of an earlier version is brought up by `MIGRATIONS`, any other is set aside."""

Document: TypeAlias = dict[str, Any]
MIGRATIONS: Mapping[int, Callable[[Document], Document]] = {}
"""Version -> what makes a document of that version one of the next; the document's keys tell which file it is."""

Record = TypeVar("Record")


class _Versioned(msgspec.Struct):
    version: int


def decoded(text: bytes, kind: type[Record]) -> Record:
    """Return the record that a file holds; DecodeError, UnicodeDecodeError or RecursionError where it is none."""
    if msgspec.json.decode(text, type=_Versioned).version == VERSION:
        return msgspec.json.decode(text, type=kind)
    return msgspec.convert(migrated(msgspec.json.decode(text)), kind)


def migrated(document: Document, migrations: Mapping[int, Callable[[Document], Document]] = MIGRATIONS) -> Document:
    """Bring a document up to this version, one version at a time; ValidationError where no way leads there."""
    while (version := document["version"]) != VERSION:
        if version not in migrations:
            raise msgspec.ValidationError(f"has version {version}, this gpuward reads {VERSION}")
        document = {**migrations[version](document), "version": version + 1}
    return document
