"""Other GPUs for a worker whose own have faulted again. Pure: which, or why none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gpuward.config.fleet import Pool
from gpuward.policy.fleet.admission import FleetView
from gpuward.policy.gpus.inventory import Gpu
from gpuward.policy.gpus.memory import room_missing
from gpuward.policy.worker.life import Goal, Phase, Worker
from gpuward.policy.worker.phases import enter
from gpuward.policy.worker.response import FAULT_WINDOW_S


def moved(fleet: FleetView, worker: Worker, now_s: float) -> Worker:
    """Return the worker with other GPUs in the place of those that it is to leave, or failed where there are none."""
    pool = fleet.pool_of(worker)
    leaves = ", ".join(_named(fleet, uuid) for uuid in worker.avoid)
    why_not = _bound(pool)
    uuids = () if why_not else _free(fleet, worker, pool)
    if uuids:
        goes = ", ".join(_named(fleet, uuid) for uuid in uuids)
        reason = f"moves from {leaves} to {goes}: the second fault within {FAULT_WINDOW_S / 3600:g} h"
        moves = replace(worker, device_uuids=uuids, faults=(), avoid=())
        return enter(moves, worker.phase, reason, now_s, worker.deadline_s)
    why_not = why_not or f"no other {pool.device_count} GPUs of this kind are free"
    cause = worker.last_exit.cause if worker.last_exit is not None else "a fault"
    reason = (
        f"{cause} for the second time within {FAULT_WINDOW_S / 3600:g} h on {leaves}, and {why_not}; "
        f"take the GPU out of service or give the pool others, then gpuctl start {worker.name}"
    )
    return enter(replace(worker, avoid=()), Phase.FAILED, reason, now_s)


def _bound(pool: Pool) -> str:
    if pool.gpus or pool.first_gpu is not None:
        return "the pool names its GPUs"
    return "the pool shares its GPUs" if pool.share else ""


def _free(fleet: FleetView, worker: Worker, pool: Pool) -> tuple[str, ...]:
    """The first free GPUs of the kind that it leaves, in PCI order; empty where they are too few."""
    had = fleet.snapshot.gpu(worker.avoid[0])
    taken = _taken(fleet.workers, worker)
    margin_bytes = fleet.terms.memory_margin_bytes
    free = [
        gpu.uuid
        for gpu in fleet.snapshot.gpus
        if gpu.uuid not in taken
        and not {gpu.uuid, gpu.index} & {*worker.avoid, *fleet.terms.excluded, *fleet.closed}
        and gpu.health == "ok"
        and (had is None or _kind(gpu) == _kind(had))
        and not room_missing(pool, fleet.snapshot, (gpu.uuid,), margin_bytes)
    ]
    return tuple(free[: pool.device_count]) if len(free) >= pool.device_count else ()


def _taken(workers: Mapping[str, Worker], worker: Worker) -> set[str]:
    """GPUs that another worker has, or has a place on: also one that is stopped may be started."""
    others = [other for other in workers.values() if other.name != worker.name]
    placed = {uuid for other in others if other.goal is Goal.UP or not other.removed for uuid in other.device_uuids}
    return placed | {uuid for other in others if other.alive for uuid in other.run_uuids}


def _kind(gpu: Gpu) -> tuple[str, int | None]:
    return (gpu.name, gpu.total_bytes)


def _named(fleet: FleetView, uuid: str) -> str:
    gpu = fleet.snapshot.gpu(uuid)
    return f"GPU {gpu.index}" if gpu is not None else uuid
