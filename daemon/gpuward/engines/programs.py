"""Where a program is: the keeper executes a path, so a bare name is looked up here, in the worker's own PATH."""

from __future__ import annotations

import os
from collections.abc import Mapping


def find(name: str, env: Mapping[str, str]) -> str | None:
    """Return the path of ``name``; as it is where it has a slash, None where no directory of ``PATH`` has it."""
    if "/" in name:
        return name
    for directory in env.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(directory or ".", name)  # noqa: PTH118 - "." and "" are words of PATH
        if is_executable(path):
            return path
    return None


def is_executable(path: str) -> bool:
    """Whether this is a file that may be executed."""
    return os.path.isfile(path) and os.access(path, os.X_OK)  # noqa: PTH113
