"""Whether a worker that is stopped now would come back. Pure; what would not is not stopped (DESIGN decision 15)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from gpuward.config.fleet import Pool
from gpuward.policy.fleet.admission import FleetView
from gpuward.policy.reasons import Wait
from gpuward.policy.worker.life import Goal, Phase, Worker

_SPARED = frozenset({"gpu-closed", "gpu-lost"})


@dataclass(frozen=True, slots=True)
class WouldNotReturn:
    """What keeps a worker down once it is stopped, until a person does something about it."""

    worker: str
    wait: Wait

    def __str__(self) -> str:
        return f"{self.worker} would not come back: {self.wait.text}"


def would_not_return(
    fleet: FleetView, worker: Worker, pool: Pool, *, beside: Collection[str] = (), launch: str = ""
) -> WouldNotReturn | None:
    """Say what would keep the worker down as ``pool`` says; None where nothing is known that would.

    ``beside``: workers that the same command starts. ``launch``: why its definition does not launch, as the host says.
    """
    found = _of_gpus(fleet, worker, pool) or _of_dependencies(fleet, pool, beside)
    if found is None and launch:
        found = Wait(kind="does-not-launch", text=launch)
    return WouldNotReturn(worker.name, found) if found is not None else None


def _of_gpus(fleet: FleetView, worker: Worker, pool: Pool) -> Wait | None:
    if pool.device_count and not worker.device_uuids:
        text = "it has no device set: the fleet does not fit this host at present (see gpuctl plan)"
        return Wait(kind="no-devices", text=text)
    for uuid in worker.device_uuids:
        if uuid in fleet.closed:
            return Wait(kind="gpu-closed", text=fleet.closed[uuid], on=uuid)
        gpu = fleet.snapshot.gpu(uuid)
        if fleet.snapshot.state != "ok":
            continue
        if gpu is None or gpu.health == "lost":
            named = f"GPU {gpu.index}" if gpu is not None else uuid
            return Wait(kind="gpu-lost", text=f"{named} is lost; it needs a reset or a reboot", on=uuid)
        if {gpu.index, uuid} & {*fleet.terms.excluded}:
            text = f"the host settings exclude GPU {gpu.index} (inventory.exclude)"
            return Wait(kind="gpu-excluded", text=text, on=uuid)
    return None


def _of_dependencies(fleet: FleetView, pool: Pool, beside: Collection[str]) -> Wait | None:
    for member in fleet.workers.values():
        if member.pool not in pool.depends_on or member.removed or member.name in beside:
            continue
        if member.goal is Goal.DOWN:
            text = f"{member.name}, which it depends on, is stopped by command; gpuctl start {member.name}"
            return Wait(kind="dependency-down", text=text, on=member.name)
        if member.phase is Phase.FAILED:
            text = f"{member.name}, which it depends on, has failed; gpuctl why {member.name}"
            return Wait(kind="dependency-failed", text=text, on=member.name)
    return None


def all_that_would_not_return(
    fleet: FleetView,
    workers: Collection[Worker],
    pools: Mapping[str, Pool],
    launch: Mapping[str, str],
) -> tuple[WouldNotReturn, ...]:
    """Those of the workers, which one command restarts together, that live now and would not come back."""
    beside = {worker.name for worker in workers}
    found = (
        would_not_return(fleet, one, pools[one.pool], beside=beside, launch=launch.get(one.name, ""))
        for one in workers
        if one.phase in {Phase.STARTING, Phase.READY}
    )
    return tuple(one for one in found if one is not None)


def kept_down_by_a_person(fleet: FleetView, workers: Iterable[Worker]) -> dict[str, Wait]:
    """What keeps blocked workers down that only a person can take away; those that may move by themselves are not."""
    found = {}
    for worker in workers:
        if worker.phase is not Phase.BLOCKED or worker.goal is not Goal.UP or worker.removed:
            continue
        pool = fleet.pools[worker.pool]
        kept = would_not_return(fleet, worker, pool)
        if kept is not None and kept.wait.kind != "no-devices" and not (pool.spare and kept.wait.kind in _SPARED):
            found[worker.name] = kept.wait
    return found


def dependents(workers: Mapping[str, Worker], pools: Mapping[str, Pool], stopped: Collection[str]) -> tuple[str, ...]:
    """Workers wanted up that depend on a pool of which a worker is to be stopped, and are not stopped with it."""
    touched = {workers[name].pool for name in stopped if name in workers}
    return tuple(
        worker.name
        for worker in workers.values()
        if worker.goal is Goal.UP
        and worker.alive
        and worker.name not in stopped
        and touched & {*pools[worker.pool].depends_on}
    )


def placed_as(worker: Worker, device_uuids: tuple[str, ...]) -> Worker:
    """The worker as a plan would place it."""
    return replace(worker, device_uuids=device_uuids) if device_uuids else worker
