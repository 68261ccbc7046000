"""Fleets and hosts that the policy tests share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gpuward.config.fleet import Fleet, Pool
from gpuward.policy.fleet.apply import Applied, Ports, apply
from gpuward.policy.fleet.changes import compare
from gpuward.policy.fleet.step import FleetState, Outcome
from gpuward.policy.gpus.inventory import Gpu, GpuProcess, Snapshot
from gpuward.policy.placement.place import place
from gpuward.policy.reasons import By

GIB = 1024**3
TOTAL_BYTES = 80 * GIB


def a_gpu(index: int, *, used_bytes: int = 0, processes: tuple[GpuProcess, ...] = ()) -> Gpu:
    return Gpu(
        index=index,
        uuid=f"GPU-{index}",
        name="H100",
        pci_bus_id=f"0000:{index:02x}:00.0",
        total_bytes=TOTAL_BYTES,
        reserved_bytes=0,
        used_bytes=used_bytes,
        free_bytes=TOTAL_BYTES - used_bytes,
        processes=processes,
    )


def a_snapshot(gpus: int = 4, *, at_s: float = 0.0, used: Mapping[int, int] | None = None) -> Snapshot:
    known = used or {}
    return Snapshot(
        provider="simulated",
        state="ok",
        taken_at_s=at_s,
        gpus=tuple(a_gpu(index, used_bytes=known.get(index, 0)) for index in range(gpus)),
    )


def applied(
    state: FleetState, pools: Iterable[Pool], old: Fleet | None = None, now_s: float = 0.0, by: By | None = None
) -> Outcome:
    """Plan a fleet on the state's own snapshot and apply it, as the daemon does."""
    fleet = Fleet(pools=tuple(pools))
    devices = {name: worker.device_uuids for name, worker in state.workers.items() if not worker.removed}
    plan = place(fleet.pools, state.snapshot, current={name: uuids for name, uuids in devices.items() if uuids})
    assert plan.ok, plan.problems
    names = [name for pool in fleet.pools for name in pool.worker_names]
    ports = {name: Ports(block=20000 + 64 * number, serves_on=None) for number, name in enumerate(names)}
    return apply(state, Applied(fleet, plan, compare(old, fleet, devices, plan), ports, by=by), now_s)
