"""A fleet on one host under its settings: GPUs, claims and ports together. The one plan, with a daemon and without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gpuward.config.fleet import Fleet, Remark
from gpuward.config.host import HostSettings
from gpuward.policy.inventory import Snapshot
from gpuward.policy.placement import place
from gpuward.policy.plan import Plan
from gpuward.policy.ports import problems


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
    plan = place(
        fleet.pools,
        snapshot,
        excluded=settings.inventory.exclude,
        closed=closed,
        claims_per_gpu=settings.limits.claims_per_gpu,
        current={name: uuids for name, uuids in current.items() if uuids},
    )
    plan = replace(plan, warnings=(*fleet.warnings, *warnings, *plan.warnings))
    trouble = problems(fleet.pools, settings.ports)
    return replace(plan, workers=(), problems=(*plan.problems, *trouble)) if trouble else plan
