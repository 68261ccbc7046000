"""Which worker a process on a GPU belongs to: by session, by descent from a keeper, by the marker it carries."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpuward.policy.inventory import Snapshot

ANCESTORS_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracks:
    """What tells a run's processes: the session of its main process, its keeper, its marker; each to the worker."""

    sessions: Mapping[int, str]
    keepers: Mapping[int, str]
    markers: Mapping[bytes, str]


@dataclass(slots=True)
class Attribution:
    """Owners of the processes of the newest sample; an owner once found is remembered while the pid stays listed."""

    owners: dict[int, str] = field(default_factory=dict)
    used_bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    """Worker -> GPU UUID -> bytes."""
    untold: set[tuple[str, str]] = field(default_factory=set)
    """Worker and GPU UUID where the driver does not tell the memory of every process."""

    def update(self, snapshot: Snapshot, tracks: Tracks) -> None:
        """Look at a new sample."""
        living = set(tracks.keepers.values())
        listed = {process.pid for gpu in snapshot.gpus for process in gpu.processes}
        known = {pid: owner for pid, owner in self.owners.items() if pid in listed and owner in living}
        found = {pid: owner for pid in listed - known.keys() if (owner := owner_of(pid, tracks)) is not None}
        self.owners = known | found
        self.used_bytes = {}
        self.untold = set()
        for gpu in snapshot.gpus:
            for process in gpu.processes:
                owner = self.owners.get(process.pid)
                if owner is None:
                    continue
                if process.used_bytes is None:
                    self.untold.add((owner, gpu.uuid))
                    continue
                used = self.used_bytes.setdefault(owner, {})
                used[gpu.uuid] = used.get(gpu.uuid, 0) + process.used_bytes


def owner_of(pid: int, tracks: Tracks) -> str | None:
    """Return the worker that a process belongs to; None for a foreign process or one that is gone."""
    try:
        session = os.getsid(pid)
    except ProcessLookupError:
        return None
    except PermissionError:
        session = 0
    return tracks.sessions.get(session) or _by_descent(pid, tracks.keepers) or _by_marker(pid, tracks.markers)


def _by_descent(pid: int, keepers: Mapping[int, str]) -> str | None:
    for _ in range(ANCESTORS_MAX):
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return None
        pid = int(stat.rpartition(b")")[2].split()[1])
        if pid in keepers:
            return keepers[pid]
        if pid <= 1:
            return None
    return None


def _by_marker(pid: int, markers: Mapping[bytes, str]) -> str | None:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((markers[entry] for entry in entries if entry in markers), None)
