"""A fleet on one host under its settings: GPUs, claims and ports together. The one plan, with a daemon and without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from gpuward.config.errors import bounded
from gpuward.config.fleet import Fleet, Remark
from gpuward.config.host import HostSettings
from gpuward.policy.gpus.inventory import Snapshot
from gpuward.policy.placement.place import place
from gpuward.policy.placement.plan import Plan
from gpuward.policy.placement.ports import problems

WORKERS_MAX: Final = 1024
"""Of all pools together. Planning them takes less than 0.1 s, during which nobody is answered."""


def plan_on_host(
    fleet: Fleet,
    snapshot: Snapshot,
    settings: HostSettings,
    *,
    closed: Mapping[str, str],
    current: Mapping[str, tuple[str, ...]],
    warnings: tuple[Remark, ...] = (),
) -> Plan:
    """Place a fleet; ``closed``: GPUs (UUID) that take no new worker and why; ``current``: device sets to keep.

    ``warnings`` stand between those of the file and those of the placement.
    """
    workers = sum(pool.workers for pool in fleet.pools)
    if workers > WORKERS_MAX:
        return Plan(
            workers=(), problems=(_too_many(workers),), warnings=fleet.warnings, gpus_needed=0, gpus_available=0
        )
    plan = place(
        fleet.pools,
        snapshot,
        excluded=settings.inventory.exclude,
        closed=closed,
        claims_per_gpu=settings.limits.claims_per_gpu,
        current={name: uuids for name, uuids in current.items() if uuids},
    )
    plan = replace(plan, warnings=(*fleet.warnings, *warnings, *plan.warnings))
    trouble = (*plan.problems, *problems(fleet.pools, settings.ports))
    return replace(plan, workers=(), problems=bounded(trouble)) if trouble else plan


def _too_many(workers: int) -> Remark:
    message = (
        f"cannot plan {workers} workers: one host takes at most {WORKERS_MAX}, of all pools together; lower workers"
    )
    return Remark(code="too-many-workers", pool=None, message=message)
