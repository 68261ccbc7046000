"""May this worker start now, and if not, what is it waiting for? Reasons are sentences with the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from gpuward.config.fleet import Pool
from gpuward.policy.fleet.ramp import ramp_obstacle
from gpuward.policy.gpus.holders import Holders
from gpuward.policy.gpus.inventory import Snapshot
from gpuward.policy.gpus.levels import Level, flat
from gpuward.policy.gpus.memory import claim_bytes, room_missing
from gpuward.policy.reasons import Wait
from gpuward.policy.worker.life import Goal, Phase, Worker


class LimitsView(Protocol):
    """What admission needs of the host's limits."""

    @property
    def memory_margin_bytes(self) -> int:
        """Bytes that must be free beyond the claim."""

    @property
    def excluded(self) -> tuple[int | str, ...]:
        """GPUs that no worker may get, by index or UUID."""


class FleetView(Protocol):
    """What admission looks at."""

    @property
    def snapshot(self) -> Snapshot:
        """The newest sample."""

    @property
    def workers(self) -> Mapping[str, Worker]:
        """All workers by name."""

    @property
    def holders(self) -> Holders:
        """Who the processes of the newest sample are."""

    @property
    def levels(self) -> Mapping[str, Level]:
        """How long the free memory of each GPU has been what it is."""

    @property
    def pools(self) -> Mapping[str, Pool]:
        """Their pools by name."""

    def pool_of(self, worker: Worker) -> Pool:
        """The pool that a worker belongs to, as it is to be started."""

    @property
    def closed(self) -> Mapping[str, str]:
        """GPUs that take no new worker, by UUID, and why."""

    @property
    def terms(self) -> LimitsView:
        """The host's limits."""


def obstacle(fleet: FleetView, worker: Worker, now_s: float) -> Wait | None:
    """Say why a blocked worker cannot start yet; None where it may."""
    return _missing(fleet, worker) or _longer_waiting(fleet, worker, now_s)


def _missing(fleet: FleetView, worker: Worker) -> Wait | None:
    pool = fleet.pool_of(worker)
    if pool.device_count and not worker.device_uuids:
        text = "has no device set: the fleet does not fit this host at present (see gpuctl plan)"
        return Wait(kind="no-devices", text=text)
    return (
        _unready_dependency(fleet, pool)
        or ramp_obstacle(fleet.workers.values(), worker, fleet.pools[worker.pool])
        or _closed(fleet, worker)
        or _occupied(fleet, worker, pool)
        or stale(fleet, worker)
        or room_missing(pool, fleet.snapshot, worker.device_uuids, fleet.terms.memory_margin_bytes, fleet.holders)
    )


def _longer_waiting(fleet: FleetView, worker: Worker, now_s: float) -> Wait | None:
    """Of those that could start now on a shared GPU, the one that has waited longest does."""
    mine = set(worker.device_uuids)
    for other in fleet.workers.values():
        if other.phase is not Phase.BLOCKED or other.goal is Goal.DOWN or other.not_before_s > now_s:
            continue
        if other.since_s < worker.since_s and not mine.isdisjoint(other.device_uuids) and not _missing(fleet, other):
            text = f"waits for {other.name}, which waits {worker.since_s - other.since_s:.1f} s longer for its turn"
            return Wait(kind="turn", text=text, on=other.name)
    return None


def starting_neighbour(fleet: FleetView, worker: Worker) -> Wait | None:
    """Say which worker on the same GPUs is between its start and ready; None where none is.

    What a neighbour gives back while vLLM measures the GPU ends the one that measures (vllm-project/vllm #56830).
    """
    mine = set(worker.run_uuids)
    for other in fleet.workers.values():
        if other.name == worker.name or mine.isdisjoint(other.run_uuids):
            continue
        if other.phase is Phase.STARTING and not _has_its_memory(fleet, other):
            text = f"waits for {other.name} to be ready first: it measures a GPU that both have"
            return Wait(kind="neighbour", text=text, on=other.name)
    return None


def _has_its_memory(fleet: FleetView, worker: Worker) -> bool:
    """Whether a run that starts has measured its GPUs already: it holds its claim, and nothing moves there."""
    pool, snapshot = fleet.pool_of(worker), fleet.snapshot
    if not worker.run_uuids or snapshot.state != "ok":
        return False
    for uuid in worker.run_uuids:
        gpu = snapshot.gpu(uuid)
        if gpu is None or gpu.settling:
            return False
        held = [one.used_bytes for one in gpu.processes if _is_of(fleet.holders, one.pid, worker.name)]
        told = [used_bytes for used_bytes in held if used_bytes is not None]
        held_bytes = sum(told) if len(told) == len(held) else None
        if not flat(fleet.levels.get(uuid), held_bytes, claim_bytes(pool, gpu), snapshot.taken_at_s):
            return False
    return True


def _is_of(holders: Holders, pid: int, worker: str) -> bool:
    holder = holders.get(pid)
    return holder is not None and holder.kind == "ours" and holder.worker == worker


def stale(fleet: FleetView, worker: Worker) -> Wait | None:
    """The sample must be younger than the end of every run that had one of these GPUs, its own or another's."""
    mine = {*worker.device_uuids, *worker.run_uuids}
    if not mine:
        return None
    if fleet.snapshot.state != "ok":
        text = f"waits for the GPU inventory, which is {fleet.snapshot.state}: {fleet.snapshot.reason}"
        return Wait(kind="inventory", text=text)
    for other in fleet.workers.values():
        had_mine = other.ended_s is not None and not mine.isdisjoint(other.run_uuids)
        if had_mine and other.ended_s is not None and fleet.snapshot.taken_at_s <= other.ended_s:
            text = f"waits for a sample of the GPUs taken after run {other.run} of {other.name} ended"
            return Wait(kind="sample", text=text, on=other.name)
    return None


def _unready_dependency(fleet: FleetView, pool: Pool) -> Wait | None:
    for name in pool.depends_on:
        members = [worker for worker in fleet.workers.values() if worker.pool == name and not worker.removed]
        for member in members:
            if member.goal is Goal.DOWN:
                text = f"waits for {member.name}, which is stopped by command"
                return Wait(kind="dependency-down", text=text, on=member.name)
            if member.phase is Phase.FAILED:
                text = f"waits for {member.name}, which has failed: {member.reason}"
                return Wait(kind="dependency-failed", text=text, on=member.name)
            if member.phase is not Phase.READY:
                text = f"waits for {member.name} to be ready (it is {member.phase})"
                return Wait(kind="dependency-starting", text=text, on=member.name)
    return None


def _closed(fleet: FleetView, worker: Worker) -> Wait | None:
    closed = next((uuid for uuid in worker.device_uuids if uuid in fleet.closed), None)
    return None if closed is None else Wait(kind="gpu-closed", text=f"held back: {fleet.closed[closed]}", on=closed)


def _occupied(fleet: FleetView, worker: Worker, pool: Pool) -> Wait | None:
    """A GPU alone belongs to one living run; on a shared one only one worker starts at a time."""
    mine = set(worker.device_uuids)
    for other in fleet.workers.values():
        if other.name == worker.name or not other.alive or mine.isdisjoint(other.run_uuids):
            continue
        if not (pool.share and fleet.pools[other.pool].share):
            text = f"waits for {other.name} ({other.phase}) to leave its GPUs"
            return Wait(kind="occupied", text=text, on=other.name)
        if other.phase is not Phase.READY and not (other.phase is Phase.STARTING and _has_its_memory(fleet, other)):
            text = f"waits for {other.name} ({other.phase}): one start at a time on a shared GPU"
            return Wait(kind="occupied", text=text, on=other.name)
    return None
