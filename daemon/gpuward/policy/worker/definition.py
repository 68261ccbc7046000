"""What the processes of a pool see of it: a digest, and the keys of which a change restarts them. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from msgspec import json, structs

from gpuward.config.fleet import Pool
from gpuward.policy.worker.life import Worker

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


_FIELDS = structs.fields(Pool)


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
        keys = restarting_keys(started_as, pool) if started_as is not None else ()
        changed = f"{', '.join(keys)} changed" if keys else f"{worker.definition} became {definition(pool)}"
        return f"its definition is another than run {worker.run} was started with: {changed}"
    if worker.run_uuids != worker.device_uuids and worker.device_uuids:
        return f"run {worker.run} is on {', '.join(worker.run_uuids) or 'no GPU'}, its place is another now"
    return ""


def restarting_keys(old: Pool, new: Pool) -> tuple[str, ...]:
    """Keys that change what the process was started with."""
    same_sizes = _sizes(old) == _sizes(new)
    names = [field.name for field in _FIELDS if getattr(old, field.name) != getattr(new, field.name)]
    ignored = _KEEPS_PROCESS | _CHOOSES_GPUS | (_SIZES if same_sizes else frozenset())
    ignored |= _without_effect(old) & _without_effect(new)
    return tuple(name.replace("_", "-") for name in names if name not in ignored)


def _sizes(pool: Pool) -> tuple[int, int, int]:
    return (pool.device_count, pool.parallel_size, pool.pipeline_parallel_size or 1)
