"""The one exception of this package: a file that may not be used, with everything that is wrong in it."""

from __future__ import annotations

from collections.abc import Sequence

from gpuward.config.fleet import Remark


class ConfigError(Exception):
    """A file was refused; nothing of it applies.

    ``problems`` holds all that was found, in file order. ``str()`` is one line per problem, led by the file's name.
    """

    def __init__(self, file: str, problems: Sequence[Remark]) -> None:
        self.file = file
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{file}: {remark.message}" for remark in self.problems))
