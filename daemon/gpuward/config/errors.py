"""The one exception of this package: a file that may not be used, with everything that is wrong in it."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from gpuward.config.fleet import Remark


def one_line(text: str) -> str:
    """Text of a stranger's file for a sentence: line ends and control characters (terminals obey them) escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


PROBLEMS_MAX = 100


class ConfigError(Exception):
    """A file was refused; nothing of it applies.

    ``problems`` holds what was found, in file order, at most 100. ``str()`` is one line per problem, led by the file's
    name.
    """

    def __init__(self, file: str, problems: Sequence[Remark]) -> None:
        self.file = file
        self.problems = bounded(tuple(problems))
        super().__init__("\n".join(remark.message for remark in self.named))

    @property
    def named(self) -> tuple[Remark, ...]:
        """The problems with the file's name before each message, for readers who see no other heading."""
        return tuple(structs.replace(one, message=f"{self.file}: {one.message}") for one in self.problems)


def bounded(problems: tuple[Remark, ...]) -> tuple[Remark, ...]:
    """Return the first hundred problems, and how many more there are."""
    if len(problems) <= PROBLEMS_MAX:
        return problems
    more = Remark(code="bad-value", pool=None, message=f"and {len(problems) - PROBLEMS_MAX} more problems like these")
    return (*problems[:PROBLEMS_MAX], more)
