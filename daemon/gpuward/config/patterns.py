"""Regular expressions that operators write for text that others write: linear in the text by construction (RE2).

Python's own can take time without end for one line, on a thread that others wait for. Imported only where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

MEMORY_MAX_BYTES: Final = 4 * 1024 * 1024
"""Of one pattern with its automaton."""


class Found(Protocol):
    """Where a pattern matched."""

    def start(self) -> int:
        """Where in the line it begins."""

    def end(self) -> int:
        """Where in the line it ends."""

    def groupdict(self) -> dict[str, str | None]:
        """The named groups."""


class Pattern(Protocol):
    """What is asked of a compiled expression."""

    def search(self, text: str, /) -> Found | None:
        """Return the first match in ``text``."""

    @property
    def groupindex(self) -> Mapping[str, int]:
        """The names of its groups."""


class BadPattern(ValueError):
    """A text that is no regular expression, or one that cannot be searched in linear time."""


def compiled(text: str) -> Pattern:
    """Return the pattern; BadPattern where RE2 does not take it: look-around and back-references are not linear."""
    import re2

    options = re2.Options()
    options.log_errors = False
    options.max_mem = MEMORY_MAX_BYTES
    try:
        pattern: Pattern = re2.compile(text, options)
    except re2.error as error:
        said = error.args[0] if error.args else error
        why = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        raise BadPattern(f"{why}{_way_out(why)}") from error
    return pattern


def _way_out(why: str) -> str:
    if "perl operator" in why or "escape sequence" in why:
        return "; look-around and back-references are not supported (syntax: RE2)"
    return "; repeat at most 1000 times" if "repetition size" in why else ""
