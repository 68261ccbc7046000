"""What a process is called, for people: its program and no more of its command line."""

from __future__ import annotations

import os
from pathlib import Path

from gpuward.host.text import clean

_INTERPRETERS = frozenset({"python", "sh", "bash", "dash", "node", "java", "perl", "ruby"})
"""Programs whose own name says nothing: the script or module that they run does."""


def program(pid: int) -> str:
    """Return what runs in a process, printable; empty where it is gone."""
    words = _read(f"/proc/{pid}/cmdline").rstrip(b"\0").split(b"\0")
    return program_of(words) or clean(os.fsdecode(_read(f"/proc/{pid}/comm").strip()))


def program_of(words: list[bytes]) -> str:
    """Return the title or the program of a command line, of an interpreter with its script or module, printable.

    Never more of it: keys and passwords stand there.
    """
    first, *others = map(os.fsdecode, words)
    name = first.rpartition("/")[2] if others else first
    if others and name.rstrip("0123456789.") in _INTERPRETERS:
        if others[0] == "-m" and len(others) > 1:
            name = f"{name} -m {others[1]}"
        elif not others[0].startswith("-"):
            name = f"{name} {others[0].rpartition('/')[2]}"
    return clean(name)


def _read(path: str) -> bytes:
    """A file of /proc; nothing where the process is gone or not ours to read."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
