"""The runtime directory: made, locked and marked at the start, and again where somebody deletes it meanwhile.

logind removes ``$XDG_RUNTIME_DIR`` with the last session of a user (loginctl(1), enable-linger keeps it), cleaners
remove what is old. Decides nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from gpuward.host.own_process import LOCK_NAME, AlreadyLocked, lock_directory

MARK = "simulated-host"
"""A directory with this file in it belongs to a simulated host."""


class RuntimeDirectory:
    """``inside``: directories that belong in it. ``made_again`` counts how often something had to be."""

    def __init__(self, root: Path, inside: Iterable[Path] = (), *, simulated: bool = False) -> None:
        self.root = root
        self.made_again = 0
        self._inside = tuple(inside)
        self._simulated = simulated
        self._lock = -1

    def take(self) -> None:
        """Make and lock it; OSError, or AlreadyLocked where another daemon has it."""
        self._make()
        self._lock = lock_directory(self.root)

    def keep(self) -> None:
        """Make again what was deleted; OSError where that cannot be, or where another daemon has taken its place."""
        if self._whole():
            return
        self._make()
        if not self._locked():
            try:
                lock = lock_directory(self.root)
            except AlreadyLocked as error:
                raise OSError(None, str(error)) from None
            os.close(self._lock)
            self._lock = lock
        self._mark()
        self.made_again += 1

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _make(self) -> None:
        for path in (self.root, *self._inside):
            path.mkdir(parents=True, exist_ok=True)

    def _mark(self) -> None:
        if self._simulated:
            with suppress(OSError):  # a full disk: the next start will try again
                (self.root / MARK).touch()

    def _whole(self) -> bool:
        marked = not self._simulated or (self.root / MARK).exists()
        return marked and self._locked() and all(path.is_dir() for path in self._inside)

    def _locked(self) -> bool:
        """Whether the lock file that others would find is the one that is locked."""
        try:
            return os.path.samestat((self.root / LOCK_NAME).stat(), os.fstat(self._lock))
        except OSError:
            return False
