"""Whether a model is a path or a name that the engine looks up, and where relative paths lead."""

from __future__ import annotations

import os.path
from collections.abc import Callable
from pathlib import Path

PathExists = Callable[[str], bool]
"""Whether a path exists; ``os.path.exists`` outside tests."""

_ALWAYS_PATHS = ("/", "~", "./", "../")


def locate_model(model: str, directory: str, path_exists: PathExists) -> tuple[str, str | None]:
    """Return what the engine gets, and a warning where neither a path nor a plausible name is seen.

    ``/x``, ``~x``, ``./x`` and ``../x`` are paths. Anything else is one if it exists relative to ``directory`` (that
    of the fleet file); if not, it is a name, as ``org/name`` of a hub, which gets no warning.
    """
    absolute = absolute_from(model, directory)
    if path_exists(absolute):
        return absolute, None
    if model.startswith(_ALWAYS_PATHS) or model in {".", ".."}:
        return absolute, f"model = {model}: there is no {absolute} on this host; the engine will refuse to start"
    if model.endswith("/") or model.count("/") > 1:
        return model, (
            f"model = {model}: there is no {absolute} on this host, and it does not look like a hub name; "
            "it is given to the engine as it is"
        )
    return model, None


def locate_program(program: str, directory: str, path_exists: PathExists) -> tuple[str, str | None]:
    """Return the program, absolute where it names a path, and a warning where that path does not exist.

    A bare name is looked up by the engine's start in PATH, which only the host that runs it knows.
    """
    if "/" not in program and not program.startswith("~"):
        return program, None
    absolute = absolute_from(program, directory)
    if path_exists(absolute):
        return absolute, None
    return absolute, f"there is no {absolute} on this host; a start will fail until there is"


def absolute_from(path: str, directory: str) -> str:
    """``path`` from the root, without ``.`` and ``..``; ``~`` is the home of the user that decodes."""
    try:
        expanded = Path(path).expanduser()
    except RuntimeError:  # a ~user that this host does not have
        expanded = Path(path)
    return os.path.normpath(Path(directory) / expanded)
