"""What applying a fleet would do to each worker, and because of which keys. Nothing is done here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from msgspec import json, structs

from gpuward.config.fleet import Fleet, Pool
from gpuward.policy.life import Worker
from gpuward.policy.plan import Plan, PlannedWorker

Action = Literal["start", "stop", "restart", "keep", "move"]

_KEEPS_PROCESS = frozenset(
    {
        "workers",
        "restart",
        "on_cause",
        "on_oom",
        "min_max_model_len",
        "liveness",
        "max_parallel_starts",
        "on_breach",
        "spare",
        "start_timeout_s",
        "stop_timeout_s",
        "update",
        "max_unavailable",
        "min_ready_s",
        "depends_on",
        "allow_idle_gpus",
        "ready_url",
        "ready_log",
        "ready_after_s",
    }
)
"""Keys that the supervisor reads and the process never sees: it goes on under the new value."""

_CHOOSES_GPUS = frozenset({"gpus", "first_gpu"})
"""Keys that matter only where they change the device set, which is compared by itself."""

_SIZES = frozenset({"gpus_per_worker", "tensor_parallel_size", "pipeline_parallel_size"})
"""Keys of which one may be implied by another: what they come to is compared, not what is written."""

_ENGINE_ONLY = frozenset({"model", "max_model_len", "executable", "gpu_memory_utilization"})
"""Keys that a command never gets: they are of vLLM's command line, or count in placement only."""

DIGEST_CHARACTERS = 16
_NOT_SHOWN = frozenset({"env", "extra_args", "command"})
NOTHING_RUNS: Mapping[str, str] = MappingProxyType({})
_FIELDS = structs.fields(Pool)


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


def changed_keys(old: Pool, new: Pool) -> tuple[str, ...]:
    """Keys whose values differ, as they stand in the file, in the order of the record."""
    return tuple(field.encode_name for field in _FIELDS if getattr(old, field.name) != getattr(new, field.name))


def definition(pool: Pool) -> str:
    """A digest of everything about a pool that its processes see: the same digest, the same process would start.

    Keys at their defaults do not count, so a later gpuward that knows more keys gets the same digest.
    """
    return _digest(pool, _without_effect(pool))


def first_definition(pool: Pool) -> str:
    """The digest as versions made it that did not know of keys without effect; their runs still carry it."""
    return _digest(pool, frozenset())


def _digest(pool: Pool, without_effect: frozenset[str]) -> str:
    ignored = _KEEPS_PROCESS | _CHOOSES_GPUS | _SIZES | without_effect
    plain = Pool(name=pool.name)
    seen = {
        field.encode_name: getattr(pool, field.name)
        for field in _FIELDS
        if field.name == "name"
        or (field.name not in ignored and getattr(pool, field.name) != getattr(plain, field.name))
    }
    return hashlib.sha256(json.encode([seen, _sizes(pool)], order="sorted")).hexdigest()[:DIGEST_CHARACTERS]


def differences(old: Pool, new: Pool) -> tuple[Difference, ...]:
    """Changed keys with their values; of an environment and of words, which may hold secrets, the names alone."""
    return tuple(
        Difference(key=field.encode_name, before=_shown(field.name, old), after=_shown(field.name, new))
        for field in _FIELDS
        if getattr(old, field.name) != getattr(new, field.name)
    )


def _shown(name: str, pool: Pool) -> str | None:
    value = getattr(pool, name)
    if name in _NOT_SHOWN or value is None:
        return None
    return json.encode(value).decode()


def _without_effect(pool: Pool) -> frozenset[str]:
    """Keys that a process of this pool would get nothing of."""
    unused = _ENGINE_ONLY if pool.engine == "command" else frozenset[str]()
    return unused | ({"pin", "share"} if not pool.device_count else frozenset[str]())


def as_digested_now(worker: Worker, pool: Pool) -> Worker:
    """The worker with today's digest in the place of the one that an earlier version made of the same pool."""
    first, now = first_definition(pool), definition(pool)
    return replace(
        worker,
        definition=now if worker.definition == first else worker.definition,
        proved=now if worker.proved == first else worker.proved,
    )


def outdated(worker: Worker, pool: Pool, started_as: Pool | None) -> str:
    """Say why a run that lives is not what the fleet asks for; empty where it is.

    ``started_as`` is the pool that the run was started from, where that is on record: it tells the keys.
    """
    if worker.definition and worker.definition != definition(pool):
        keys = _restarting(started_as, pool) if started_as is not None else ()
        changed = f"{', '.join(keys)} changed" if keys else f"{worker.definition} became {definition(pool)}"
        return f"its definition is another than run {worker.run} was started with: {changed}"
    if worker.run_uuids != worker.device_uuids and worker.device_uuids:
        return f"run {worker.run} is on {', '.join(worker.run_uuids) or 'no GPU'}, its place is another now"
    return ""


def _pool_changes(
    old: Pool | None, new: Pool, old_devices: Mapping[str, tuple[str, ...]], planned: Mapping[str, PlannedWorker]
) -> Iterator[Change]:
    keys = changed_keys(old, new) if old is not None else ()
    told = differences(old, new) if old is not None else ()
    restarting = _restarting(old, new) if old is not None else ()
    had = frozenset(old.worker_names) if old is not None else frozenset[str]()
    for name in new.worker_names:
        devices = old_devices.get(name) if name in had else None
        action, reason = _action(devices, planned[name], restarting)
        if action == "keep" and keys:
            reason = f"{', '.join(keys)} changed: applied without a restart"
        yield Change(worker=name, pool=new.name, action=action, keys=keys, reason=reason, differences=told)


def _restarting(old: Pool, new: Pool) -> tuple[str, ...]:
    """Keys that change what the process was started with."""
    same_sizes = _sizes(old) == _sizes(new)
    names = [field.name for field in _FIELDS if getattr(old, field.name) != getattr(new, field.name)]
    ignored = _KEEPS_PROCESS | _CHOOSES_GPUS | (_SIZES if same_sizes else frozenset())
    ignored |= _without_effect(old) & _without_effect(new)
    return tuple(name.replace("_", "-") for name in names if name not in ignored)


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


def _sizes(pool: Pool) -> tuple[int, int, int]:
    return (pool.device_count, pool.parallel_size, pool.pipeline_parallel_size or 1)
