"""What applying a fleet would do to each worker, and because of which keys. Nothing is done here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from msgspec import json, structs

from gpuward.config.fleet import Fleet, Pool
from gpuward.policy.placement.plan import Plan, PlannedWorker
from gpuward.policy.worker.definition import changed_keys, definition, restarting_keys

Action = Literal["start", "stop", "restart", "keep", "move"]


_NOT_SHOWN = frozenset({"env", "extra_args", "command"})
NOTHING_RUNS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A key of a pool that changes, as it stands in the file, with both values as JSON; None: not shown, or not set."""

    key: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.before is None and self.after is None:
            return self.key
        return f"{self.key} {self.before or 'unset'} -> {self.after or 'unset'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What happens to one worker, with the changed keys as they stand in the file; ``move``: only its GPUs change.

    ``left``: its pool is not in the file, and goes on as it is. ``stopped``: it is down by command and stays that.
    """

    worker: str
    pool: str
    action: Action
    keys: tuple[str, ...]
    reason: str
    differences: tuple[Difference, ...] = ()
    left: bool = False
    stopped: bool = False


def compare(
    old: Fleet | None,
    new: Fleet,
    old_devices: Mapping[str, tuple[str, ...]],
    plan: Plan,
    running: Mapping[str, str] = NOTHING_RUNS,
) -> tuple[Change, ...]:
    """Say what each worker of both fleets is in for, those of ``new`` first, in file order.

    ``old_devices`` maps workers to the UUIDs they have; one that is missing there was never placed and starts.
    ``running`` maps workers to the definition of the run that lives, where that is known.
    A plan with problems changes nothing: the answer is empty.
    """
    if not plan.ok:
        return ()
    before = {pool.name: pool for pool in old.pools} if old is not None else {}
    planned = {worker.name: worker for worker in plan.workers}
    changes = [
        _unless_it_runs(change, pool, old_devices, planned, running)
        for pool in new.pools
        for change in _pool_changes(before.get(pool.name), pool, old_devices, planned)
    ]
    gone = [
        Change(worker=name, pool=pool.name, action="stop", keys=(), reason=_why_gone(pool, new))
        for pool in before.values()
        for name in pool.worker_names
        if name not in planned
    ]
    return (*changes, *gone)


def _unless_it_runs(
    change: Change,
    pool: Pool,
    old_devices: Mapping[str, tuple[str, ...]],
    planned: Mapping[str, PlannedWorker],
    running: Mapping[str, str],
) -> Change:
    """A worker whose run was started with just this already, on its GPUs, is kept: a roll has not come to it."""
    same_gpus = old_devices.get(change.worker) == planned[change.worker].gpu_uuids
    if change.action != "restart" or not same_gpus or running.get(change.worker) != definition(pool):
        return change
    return replace(change, action="keep", reason="its process runs with this definition already")


def differences(old: Pool, new: Pool) -> tuple[Difference, ...]:
    """Changed keys with their values; of an environment and of words, which may hold secrets, the names alone."""
    return tuple(
        Difference(key=field.encode_name, before=_shown(field.name, old), after=_shown(field.name, new))
        for field in structs.fields(Pool)
        if getattr(old, field.name) != getattr(new, field.name)
    )


def _shown(name: str, pool: Pool) -> str | None:
    value = getattr(pool, name)
    if name in _NOT_SHOWN or value is None:
        return None
    return json.encode(value).decode()


def _pool_changes(
    old: Pool | None, new: Pool, old_devices: Mapping[str, tuple[str, ...]], planned: Mapping[str, PlannedWorker]
) -> Iterator[Change]:
    keys = changed_keys(old, new) if old is not None else ()
    told = differences(old, new) if old is not None else ()
    restarting = restarting_keys(old, new) if old is not None else ()
    had = frozenset(old.worker_names) if old is not None else frozenset[str]()
    for name in new.worker_names:
        devices = old_devices.get(name) if name in had else None
        action, reason = _action(devices, planned[name], restarting)
        if action == "keep" and keys:
            reason = f"{', '.join(keys)} changed: applied without a restart"
        yield Change(worker=name, pool=new.name, action=action, keys=keys, reason=reason, differences=told)


def _action(devices: tuple[str, ...] | None, planned: PlannedWorker, restarting: tuple[str, ...]) -> tuple[Action, str]:
    where = f"GPU {', '.join(map(str, planned.gpus))}" if planned.gpus else "no GPU"
    if devices is None:
        return "start", f"new worker on {where}"
    moved = devices != planned.gpu_uuids
    if restarting:
        return "restart", f"{', '.join(restarting)} changed" + (f"; moves to {where}" if moved else "")
    if moved:
        return "move", f"moves to {where}"
    return "keep", f"nothing changed that the process on {where} was started with"


def _why_gone(pool: Pool, new: Fleet) -> str:
    for kept in new.pools:
        if kept.name == pool.name:
            return f"pool '{pool.name}' goes from {pool.workers} to {kept.workers} workers"
    return f"pool '{pool.name}' is no longer in the fleet"
