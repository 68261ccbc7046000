"""The document of one GPU, from the supervisor's state: what it has, how it does, who is on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import to_builtins

from gpuward.policy.fleet.step import FleetState
from gpuward.policy.gpus.inventory import Gpu, GpuProcess
from gpuward.policy.gpus.memory import claim_bytes
from gpuward.policy.gpus.modes import barred
from gpuward.policy.worker.life import Goal, Phase, Worker
from gpuward.supervisor.gpu_care import GpuCare

Document = dict[str, Any]


def workers_by_gpu(state: FleetState) -> dict[str, list[Worker]]:
    """Return who has each GPU, or is going to have it, by UUID; in fleet order."""
    found: dict[str, list[Worker]] = {}
    for worker in state.workers.values():
        for uuid in held(worker):
            found.setdefault(uuid, []).append(worker)
    return found


def gpu_document(state: FleetState, care: GpuCare, gpu: Gpu, workers: Sequence[Worker]) -> Document:
    """Return one GPU of ``gpuctl gpus -o json``; ``workers`` are those of `workers_by_gpu`.

    ``unattributed_bytes`` is what no listed process has (contexts, the driver); None where a process does not tell.
    """
    holders = [_holder(state, process) for process in gpu.processes]
    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "memory_total_bytes": gpu.total_bytes,
        "memory_used_bytes": gpu.used_bytes,
        "memory_free_bytes": gpu.free_bytes,
        "claimed_bytes": sum(claim_bytes(state.pool_of(worker), gpu) or 0 for worker in workers),
        "unattributed_bytes": _unattributed(gpu),
        "health": _health(care, gpu),
        "reason": state.closed.get(gpu.uuid, gpu.reason),
        "closed": gpu.uuid in state.closed,
        "warnings": list(care.watch.of_gpu(gpu.uuid)),
        "vitals": to_builtins(gpu.vitals),
        "settling": gpu.settling,
        "workers": [worker.name for worker in workers],
        "holders": holders,
        "foreign": [
            {key: holder[key] for key in ("pid", "name", "used_bytes")}
            for holder in holders
            if holder["kind"] != "worker"
        ],
        "stale": state.snapshot.state != "ok",
    }


def held(worker: Worker) -> tuple[str, ...]:
    """GPUs that a worker has now or is going to have."""
    if worker.alive:
        return worker.run_uuids
    return worker.device_uuids if worker.goal is Goal.UP and worker.phase is not Phase.FAILED else ()


def _holder(state: FleetState, process: GpuProcess) -> Document:
    """One process: a worker's, an orphan of ours (of a run that has ended, or that nobody watches), or foreign."""
    known = state.holders.get(process.pid)
    kinds = {"ours": "worker", "former": "orphan", "marked": "orphan", "foreign": "foreign"}
    return {
        "pid": process.pid,
        "name": process.name,
        "used_bytes": process.used_bytes,
        "kind": kinds[known.kind] if known is not None else "foreign",
        "worker": known.worker or None if known is not None else None,
    }


def _unattributed(gpu: Gpu) -> int | None:
    told = [process.used_bytes for process in gpu.processes if process.used_bytes is not None]
    if gpu.used_bytes is None or len(told) < len(gpu.processes):
        return None
    return max(0, gpu.used_bytes - sum(told))


def _health(care: GpuCare, gpu: Gpu) -> str:
    """Out of service by somebody's word or by its mode, else what the GPU itself tells."""
    if gpu.health == "lost":
        return gpu.health
    if gpu.uuid in care.health.quarantines:
        return "quarantined"
    if gpu.uuid in care.health.cordons:
        return "cordoned"
    return "barred" if barred(gpu) else gpu.health
