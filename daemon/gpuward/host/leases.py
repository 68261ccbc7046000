"""Where GPU leases lie: one lock file per UUID, in places that belong to the host and not to one daemon.

`keeper` locks them (flock(2)); the lock of a killed keeper goes with it. A run takes its lease in every place:

- ``/run/gpuward-leases``, where systemd-tmpfiles made it: nobody ages it, no logout removes it;
- ``/dev/shm/gpuward-leases``: every user can make it, and a unit with ProtectSystem=strict may still write there. It
  alone would do, but for logind's RemoveIPC=, which deletes what a person left in /dev/shm at the last logout;
- ``leases`` in this daemon's runtime directory: keepers of versions before 0.3 hold theirs there and nowhere else.

Two daemons meet in the first place that both have, whichever was made later. Not abstract sockets: several runs cannot
share one (``share = true``), and they end at a network namespace. Who may lock can also keep others from locking;
``directories.leases`` names one place with closed doors instead. Decides nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

HOST_PLACES = (Path("/run/gpuward-leases"), Path("/dev/shm/gpuward-leases"))  # noqa: S108 - see above
OPEN_TO_ALL = 0o1777
"""Everybody may add a file, nobody may remove another's (sticky bit, inode(7))."""


class Leases:
    """The places of this daemon: ``own``, and those that it shares with every other daemon of the host."""

    def __init__(self, own: Path, shared: Iterable[Path] = ()) -> None:
        self._own = own
        self._shared = tuple(shared)

    def paths(self, uuid: str) -> tuple[str, ...]:
        """Every lock file of a GPU, always in the same order: two runs that want it never hold one each for long."""
        self._own.mkdir(parents=True, exist_ok=True)  # somebody may have deleted it
        return tuple(str(place / f"{uuid}.lock") for place in (*self.usable(), self._own))

    def usable(self) -> tuple[Path, ...]:
        """The shared places that are there; made where this user may make them."""
        return tuple(place for place in self._shared if _is_place(place))

    def trouble(self) -> str:
        """Why another daemon of this host would not be noticed; empty where it would."""
        if not self._shared or self.usable():
            return ""
        names = " nor ".join(str(place) for place in self._shared)
        return (
            f"no directory for GPU leases that all daemons of this host share: neither {names} can be used; another "
            "daemon could start a worker on the same GPU; name one with directories.leases"
        )


def _is_place(path: Path) -> bool:
    """Whether a directory is there and no link: who may write beside it could else lead us anywhere."""
    try:
        path.mkdir(OPEN_TO_ALL, parents=True)
        path.chmod(OPEN_TO_ALL)  # past the umask
    except FileExistsError:
        pass
    except OSError:
        return False
    try:
        return stat.S_ISDIR(path.lstat().st_mode) and os.access(path, os.X_OK)
    except OSError:
        return False
