"""Which worker a process on a GPU belongs to: by session, by descent from a keeper, by the marker it carries."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gpuward.host.processes import Identity, ancestors, describe, environment, identify
from gpuward.policy.gpus.holders import Holder
from gpuward.policy.gpus.inventory import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracks:
    """What tells a run's processes: the session of its main process, its keeper, its marker; each to the worker.

    ``mark`` is how the markers of every run of this state directory begin.
    """

    sessions: Mapping[int, str]
    keepers: Mapping[int, str]
    markers: Mapping[bytes, str]
    mark: bytes = b""


@dataclass(slots=True)
class Attribution:
    """Owners of the processes of the newest sample.

    Who a process is, is asked once, and of those that are not ours again when other runs live. It is remembered while
    the pid stays listed and nobody else has it: what is gone stays what it was as long as the driver lists it.
    """

    owners: dict[int, str] = field(default_factory=dict)
    used_bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    """Worker -> GPU UUID -> bytes."""
    untold: set[tuple[str, str]] = field(default_factory=set)
    """Worker and GPU UUID where the driver does not tell the memory of every process."""

    holders: dict[int, Holder] = field(default_factory=dict)
    _identities: dict[int, Identity | None] = field(default_factory=dict)
    _tracks: Tracks | None = None

    def update(self, snapshot: Snapshot, tracks: Tracks) -> None:
        """Look at a new sample."""
        living = set(tracks.keepers.values())
        listed = {process.pid for gpu in snapshot.gpus for process in gpu.processes}
        stayed = self._identify(listed)
        known = {pid: owner for pid, owner in self.owners.items() if pid in stayed and owner in living}
        asked = listed - known.keys() - (stayed if tracks == self._tracks else frozenset())
        found = {pid: owner for pid in asked if (owner := owner_of(pid, tracks)) is not None}
        former = {pid: holder for pid, holder in self.holders.items() if pid in stayed}
        self._tracks = tracks
        self.owners = known | found
        self.holders = {pid: self._holder(pid, former.get(pid), tracks) for pid in listed}
        self._sum_up(snapshot)

    def _identify(self, listed: set[int]) -> set[int]:
        """Return which of these pids are of the same process as in the last sample."""
        before = self._identities
        self._identities = {pid: identify(pid) or before.get(pid) for pid in listed}
        return {pid for pid, identity in self._identities.items() if pid in before and before[pid] == identity}

    def _sum_up(self, snapshot: Snapshot) -> None:
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

    def _holder(self, pid: int, before: Holder | None, tracks: Tracks) -> Holder:
        """Who this is now; ``before``: who it was in the last sample, if it was listed there."""
        if pid in self.owners:
            return Holder(kind="ours", worker=self.owners[pid])
        if before is not None and before.kind in {"ours", "former"}:
            return replace(before, kind="former")
        if before is not None:
            return before
        mark = _mark_of(pid, tracks.mark)
        if mark is not None:
            return Holder(kind="marked", worker=mark[0], run=mark[1])
        described = describe(pid)
        return Holder(kind="foreign", user=described.user, program=described.name) if described else STRANGER


STRANGER = Holder(kind="foreign")


def _mark_of(pid: int, mark: bytes) -> tuple[str, int] | None:
    """Worker and run that a process says it belongs to, by a marker that begins as ours do."""
    for entry in environment(pid) if mark else ():
        worker, hash_, run = entry.removeprefix(mark).decode(errors="replace").rpartition("#")
        if entry.startswith(mark) and hash_ and run.isdecimal():
            return worker, int(run)
    return None


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
    return next((keepers[above] for above in ancestors(pid) if above in keepers), None)


def _by_marker(pid: int, markers: Mapping[bytes, str]) -> str | None:
    return next((markers[entry] for entry in environment(pid) if entry in markers), None)
