"""Other GPUs for workers whose own are quarantined, where their pool asks for that (`spare`). Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from gpuward.config.fleet import Pool
from gpuward.policy.fleet.preflight import would_not_return
from gpuward.policy.fleet.step import FleetState, Outcome, step, with_worker
from gpuward.policy.gpus.inventory import Gpu
from gpuward.policy.placement.board import kind_of
from gpuward.policy.worker.life import Condemned, Event, Goal, Phase, Worker


def spared(state: FleetState, quarantined: Mapping[str, str], excluded: Collection[int | str], now_s: float) -> Outcome:
    """Give every such worker a free healthy set, if there is one, and end its run; else it stays where it is.

    ``quarantined`` maps GPU UUIDs to why, ``excluded`` names GPUs that nobody may get. A worker that the operator
    wants down, or that has failed, is left alone; so is one that would not come back there.
    """
    events: list[tuple[str, Event]] = []
    for worker in tuple(state.workers.values()):
        pool = state.pool_of(worker)
        bad = [uuid for uuid in worker.device_uuids if uuid in quarantined]
        fixed = bool(pool.gpus) or pool.first_gpu is not None or pool.share
        leaves = worker.goal is Goal.UP and worker.phase is not Phase.FAILED and not worker.removed
        if not bad or not pool.spare or fixed or not leaves:
            continue
        gpus = _spare_set(state, worker, pool, excluded)
        if not gpus:
            continue
        moved = replace(worker, device_uuids=tuple(gpu.uuid for gpu in gpus))
        reason = f"moves to GPU {', '.join(str(gpu.index) for gpu in gpus)}: {quarantined[bad[0]]}"
        if would_not_return(state, moved, pool) is not None:
            continue
        state = with_worker(state, moved)
        events.append((worker.name, Condemned(worker.run, "start", reason, "spare")))
    return step(state, events, now_s) if events else (state, ())


def _spare_set(state: FleetState, worker: Worker, pool: Pool, excluded: Collection[int | str]) -> list[Gpu]:
    """The first free healthy GPUs of the kind that the worker has; empty where they are too few."""
    had = next((gpu for uuid in worker.device_uuids if (gpu := state.snapshot.gpu(uuid)) is not None), None)
    taken = {
        uuid
        for other in state.workers.values()
        if other.name != worker.name
        for uuid in (*other.device_uuids, *(other.run_uuids if other.alive else ()))
    }
    own = [gpu for gpu in state.snapshot.gpus if gpu.uuid in worker.device_uuids and gpu.uuid not in state.closed]
    free = [
        gpu
        for gpu in state.snapshot.gpus
        if gpu.uuid not in taken
        and gpu.uuid not in state.closed
        and gpu.uuid not in worker.device_uuids
        and gpu.index not in excluded
        and gpu.uuid not in excluded
        and gpu.health == "ok"
        and had is not None
        and kind_of(gpu) == kind_of(had)
    ]
    found = [*own, *free][: pool.device_count]
    return sorted(found, key=lambda gpu: gpu.index) if len(found) == pool.device_count else []
