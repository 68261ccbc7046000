"""One Dynamo service on its way to a pool: what has been taken over so far, and words for command lines."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from gpuward.config.fleet import Remark
from gpuward.config.pools import Surroundings
from gpuward.interop.dynamo.keys import NEGATED
from gpuward.interop.dynamo.service import Service


@dataclass(slots=True)
class Importing:
    """One service on its way to a pool: ``table`` and ``words`` (engine arguments) grow, remarks are collected."""

    service: Service
    around: Surroundings
    served_model: str | None
    problems: list[Remark]
    warnings: list[Remark]
    table: dict[str, object] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)

    def warn(self, code: str, sentence: str) -> None:
        """Add a warning about this service."""
        self.warnings.append(self.service.section.remark(code, sentence))

    def refuse(self, code: str, sentence: str) -> None:
        """Add a problem about this service."""
        self.problems.append(self.service.section.remark(code, sentence))


def number(value: object) -> object:
    """A number that stands in quotes, as a number; anything else unchanged, for the pool's rules to judge."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def flag_words(key: str, value: object) -> list[str]:
    """A key as command line words: true is a flag, false is left out (or negated), tables are JSON."""
    if value is None or value is False:
        return [f"--no-{key}"] if value is False and key in NEGATED else []
    if value is True:
        return [f"--{key}"]
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}", json.dumps(value, separators=(",", ":")) if isinstance(value, list | dict) else str(value)]


def without_meaning(importing: Importing, key: str, value: object, instead: str) -> None:
    """Keep a key visible that nothing reads any more; ``instead`` says what has taken its place."""
    importing.warn("key-without-meaning", f"{key} = {json.dumps(value, default=str)[:60]}: not used; {instead}")


def braces(word: str) -> str:
    """Braces that a command must not take for placeholders."""
    return word.replace("{", "{{").replace("}", "}}")
