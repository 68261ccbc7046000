"""Whether the memory of a run that has ended is known to be back, and which processes keep it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gpuward.policy.fleet.admission import FleetView, stale
from gpuward.policy.gpus.holders import Holders, named
from gpuward.policy.gpus.inventory import Snapshot
from gpuward.policy.gpus.levels import unsteady
from gpuward.policy.gpus.memory import room_missing
from gpuward.policy.reasons import Wait
from gpuward.policy.worker.life import Goal, KillOrphan, Phase, Worker


def release_obstacle(fleet: FleetView, worker: Worker) -> tuple[Wait | None, float | None]:
    """Say why the memory of the run that ended is not known to be back, None where it is; and when to look again.

    None: whenever the next sample comes. A run that had no GPU needs no proof, and a GPU that is lost gives none.
    """
    answering = tuple(uuid for uuid in worker.run_uuids if not _lost(fleet.snapshot, uuid))
    if not answering:
        return None, None
    pool, margin_bytes = fleet.pool_of(worker), fleet.terms.memory_margin_bytes
    missing = (
        stale(fleet, worker)
        or still_listed(worker, fleet.snapshot, fleet.holders)
        or room_missing(pool, fleet.snapshot, answering, margin_bytes, fleet.holders)
    )
    if missing is not None or worker.ended_s is None:
        return missing, None
    return unsteady(fleet.levels, fleet.snapshot, answering, worker.ended_s) or (None, None)


def _lost(snapshot: Snapshot, uuid: str) -> bool:
    gpu = snapshot.gpu(uuid)
    return gpu is not None and gpu.health == "lost"


def still_listed(worker: Worker, snapshot: Snapshot, holders: Holders) -> Wait | None:
    """Say which process of the worker's ended runs the driver still lists on its GPUs; None where none is."""
    for uuid in worker.run_uuids:
        gpu = snapshot.gpu(uuid)
        for process in gpu.processes if gpu is not None else ():
            holder = holders.get(process.pid)
            if gpu is not None and holder is not None and holder.worker == worker.name and holder.kind != "foreign":
                text = f"waits for {named(process, holders)} to be gone from GPU {gpu.index}"
                return Wait(kind="process", text=text, on=uuid)
    return None


def orphans(workers: Mapping[str, Worker], snapshot: Snapshot, holders: Holders) -> Iterator[KillOrphan]:
    """Processes with a marker of ours, of no living run, on a GPU that a worker waits for. Never a foreign one."""
    if snapshot.state != "ok":
        return
    wanted = {
        uuid
        for worker in workers.values()
        if worker.phase in {Phase.RELEASING, Phase.BLOCKED} and worker.goal is Goal.UP
        for uuid in (*worker.run_uuids, *worker.device_uuids)
    }
    found = {
        (holder.worker, holder.run)
        for gpu in snapshot.gpus
        if gpu.uuid in wanted
        for process in gpu.processes
        if (holder := holders.get(process.pid)) is not None and holder.kind == "marked"
    }
    for name, run in sorted(found):
        worker = workers.get(name)
        if worker is None or not worker.alive or worker.run != run:
            yield KillOrphan(name, run)
