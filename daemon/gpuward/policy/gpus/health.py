"""Which GPUs take no new worker, and why: quarantined after an error of theirs, or cordoned by the operator. Pure.

What runs on such a GPU goes on, unless its pool asks for spares (`spare`). Nothing here ever asks for a reset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

from gpuward.config.host import XidSettings
from gpuward.policy.gpus.inventory import Gpu, Snapshot
from gpuward.policy.gpus.xids import AGAIN_WITHIN_S, xid_of
from gpuward.policy.reasons import By, asked_with

Value = TypeVar("Value")


class NotPossible(Exception):
    """What was asked for a GPU cannot be done; the text says why and what to do instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class XidSeen:
    """An XID error on a GPU; ``at`` is wall time."""

    uuid: str
    code: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """Why a GPU is out of service; ``since`` is wall time, ``boot_id`` the boot that it happened in.

    ``count``: errors that would each have been reason enough.
    """

    reason: str
    since: float
    boot_id: str
    xid: int | None = None
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """GPUs out of service, by UUID. ``recent``: when a code that is bad only in series was seen: ``UUID/CODE``.

    ``cordons``: the reason that was given, ``cordoned_by``: who gave the command. ``cleared``: when a quarantine was
    ended by command last, wall time.
    """

    cordons: Mapping[str, str] = field(default_factory=dict)
    cordoned_by: Mapping[str, By] = field(default_factory=dict)
    quarantines: Mapping[str, Quarantine] = field(default_factory=dict)
    recent: Mapping[str, float] = field(default_factory=dict)
    cleared: Mapping[str, float] = field(default_factory=dict)

    def closed(self, snapshot: Snapshot) -> dict[str, str]:
        """Return a sentence for each GPU that takes no new worker."""
        names = {gpu.uuid: str(gpu.index) for gpu in snapshot.gpus}
        sentences = {}
        for uuid, why in self.cordons.items():
            name = names.get(uuid, uuid)
            cordoned = asked_with(f"GPU {name} is cordoned", why, self.cordoned_by.get(uuid))
            sentences[uuid] = f"{cordoned}; to use it again: gpuctl gpu uncordon {name}"
        for uuid, quarantine in self.quarantines.items():
            name = names.get(uuid, uuid)
            since = datetime.fromtimestamp(quarantine.since, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
            sentences[uuid] = (
                f"GPU {name} is quarantined since {since} ({quarantine.reason}); mend it, then gpuctl gpu clear {name}"
            )
        return sentences


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """News of one GPU for the journal."""

    kind: str
    uuid: str
    reason: str
    warns: bool = True
    by: By | None = None


Outcome = tuple[Health, tuple[Note, ...]]


def xid_seen(health: Health, seen: XidSeen, settings: XidSettings, gpu: Gpu | None, boot_id: str) -> Outcome:
    """Take an XID in."""
    xid = xid_of(seen.code, settings)
    where = f"GPU {gpu.index}" if gpu is not None else seen.uuid
    what = f"XID {seen.code} ({xid.meaning})"
    series = f"{seen.uuid}/{seen.code}"
    last_at = health.recent.get(series)
    if xid.again:
        health = replace(health, recent={**health.recent, series: seen.at})
    again = xid.again and last_at is not None and seen.at - last_at <= AGAIN_WITHIN_S
    if xid.kind in {"app", "record"} and not again:
        note = Note(kind="gpu-xid", uuid=seen.uuid, reason=f"{what} on {where}", warns=xid.kind == "app")
        return health, (note,)
    if again and last_at is not None:
        what = f"{what}, for the second time within {seen.at - last_at:.0f} s"
    reason = f"{what}; only a reboot of the host helps" if xid.kind == "host" else what
    quarantine = Quarantine(reason=reason, since=seen.at, boot_id=boot_id, xid=seen.code)
    return _quarantined(health, seen.uuid, quarantine, f"{reason}: {where} takes no new worker")


def xids_missed(
    health: Health, missed: Iterable[XidSeen], settings: XidSettings, snapshot: Snapshot, boot_id: str
) -> Outcome:
    """Take in what the kernel's log has of this boot, most of which was heard when it came.

    Only what takes a GPU out of service counts, and only once: not what its quarantine was ended for since.
    """
    notes: list[Note] = []
    for seen in missed:
        heard = seen.uuid in health.quarantines or seen.at <= health.cleared.get(seen.uuid, 0.0)
        if not heard and xid_of(seen.code, settings).kind in {"quarantine", "host"}:
            health, news = xid_seen(health, seen, settings, snapshot.gpu(seen.uuid), boot_id)
            notes += news
    return health, tuple(notes)


def looked(health: Health, snapshot: Snapshot, at: float, boot_id: str) -> Outcome:
    """Take a sample in: quarantine what is not in order, end the quarantine of what a reboot has mended."""
    notes: list[Note] = []
    for gpu in snapshot.gpus if snapshot.state == "ok" else ():
        trouble = trouble_of(gpu)
        known = health.quarantines.get(gpu.uuid)
        if trouble and known is None:
            quarantine = Quarantine(reason=trouble, since=at, boot_id=boot_id)
            sentence = f"{trouble}: GPU {gpu.index} takes no new worker"
            health, news = _quarantined(health, gpu.uuid, quarantine, sentence)
            notes += news
        elif not trouble and gpu.health == "ok" and known is not None and known.boot_id != boot_id:
            health = _ended(health, gpu.uuid)
            reason = f"GPU {gpu.index} is in order after a reboot; it was quarantined for {known.reason}"
            notes.append(Note(kind="gpu-cleared", uuid=gpu.uuid, reason=reason, warns=False))
    return health, tuple(notes)


def trouble_of(gpu: Gpu) -> str:
    """Return what is wrong with a GPU by its own account; empty where nothing is, or it does not tell."""
    if gpu.health == "lost":
        return f"lost: {gpu.reason}"
    if gpu.vitals.recovery:
        return f"the driver asks to {gpu.vitals.recovery}"
    if gpu.vitals.rows_failed:
        return "a row of its memory could not be replaced: the board may need replacement"
    if gpu.vitals.rows_pending:
        return "a row of its memory is replaced at the next reset"
    return ""


def cordoned(health: Health, gpu: Gpu, reason: str, by: By | None = None) -> Outcome:
    """Take a GPU out of service by command."""
    told = asked_with(f"GPU {gpu.index} is cordoned", reason, by)
    note = Note(kind="gpu-cordoned", uuid=gpu.uuid, reason=told, warns=False, by=by)
    known = _without(health.cordoned_by, gpu.uuid)
    cordoned_by = {**known, gpu.uuid: by} if by is not None else known
    return replace(health, cordons={**health.cordons, gpu.uuid: reason}, cordoned_by=cordoned_by), (note,)


def uncordoned(health: Health, gpu: Gpu, reason: str, by: By | None = None) -> Outcome:
    """Take a cordon back; where there is none nothing changes."""
    if gpu.uuid not in health.cordons:
        return health, ()
    told = asked_with(f"GPU {gpu.index} is no longer cordoned", reason, by)
    note = Note(kind="gpu-uncordoned", uuid=gpu.uuid, reason=told, warns=False, by=by)
    cordoned_by = _without(health.cordoned_by, gpu.uuid)
    return replace(health, cordons=_without(health.cordons, gpu.uuid), cordoned_by=cordoned_by), (note,)


def cleared(health: Health, gpu: Gpu, reason: str, at: float, by: By | None = None) -> Outcome:
    """End a quarantine by command. Raises NotPossible where there is none, or what it is for goes on."""
    quarantine = health.quarantines.get(gpu.uuid)
    if quarantine is None:
        raise NotPossible(f"cannot clear GPU {gpu.index}: it is not quarantined")
    if trouble := trouble_of(gpu):
        raise NotPossible(f"cannot clear GPU {gpu.index} yet: {trouble}")
    told = asked_with(f"the quarantine of GPU {gpu.index} is over", reason, by)
    sentence = f"{told}; it was quarantined for {quarantine.reason}"
    note = Note(kind="gpu-cleared", uuid=gpu.uuid, reason=sentence, warns=False, by=by)
    return replace(_ended(health, gpu.uuid), cleared={**health.cleared, gpu.uuid: at}), (note,)


def _ended(health: Health, uuid: str) -> Health:
    """The health without this quarantine; series begin anew."""
    recent = {key: seen_at for key, seen_at in health.recent.items() if key.rpartition("/")[0] != uuid}
    return replace(health, quarantines=_without(health.quarantines, uuid), recent=recent)


def _quarantined(health: Health, uuid: str, quarantine: Quarantine, sentence: str) -> Outcome:
    """The latest error's reason stands, since when and how many are of all."""
    before = health.quarantines.get(uuid)
    if before is not None:
        quarantine = replace(quarantine, since=before.since, count=before.count + 1)
    note = Note(kind="gpu-quarantined", uuid=uuid, reason=sentence)
    return replace(health, quarantines={**health.quarantines, uuid: quarantine}), (note,)


def _without(known: Mapping[str, Value], uuid: str) -> dict[str, Value]:
    return {other: value for other, value in known.items() if other != uuid}
