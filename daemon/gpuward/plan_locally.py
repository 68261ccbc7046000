"""Plans a fleet without a daemon: on this host's GPUs as the driver lists them, or on simulated ones if asked for.

Nothing runs, nothing is applied. Knows of no exclusions and limits of host settings: those belong to a daemon.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from gpuward.config.errors import ConfigError
from gpuward.config.fleet import Remark
from gpuward.control.documents import FleetText
from gpuward.control.documents import Plan as PlanDocument
from gpuward.control.protocol import SCHEMA_VERSION
from gpuward.interop.fleet_files import decode_fleet
from gpuward.policy.inventory import Snapshot
from gpuward.policy.modes import barred_gpus
from gpuward.policy.placement import place
from gpuward.policy.plan import Plan


class BadSpec(Exception):
    """A simulation that cannot be had."""


def plan_locally(fleet: FleetText, *, simulate: str | None) -> PlanDocument:
    """Return the document of ``gpuctl plan -o json`` for ``fleet``; BadSpec where ``simulate`` is no host.

    A file that does not decode is a refused plan with everything that is wrong in it.
    """
    snapshot = simulated_gpus(simulate) if simulate is not None else gpus_of_this_host()
    try:
        decoded = decode_fleet(fleet["text"], file=fleet["name"], directory=fleet["directory"])
    except ConfigError as error:
        return _document(_refused(error.named, snapshot), ())
    return _document(place(decoded.pools, snapshot, closed=barred_gpus(snapshot)), decoded.warnings)


def simulated_gpus(spec: str) -> Snapshot:
    """Return GPUs of a host like ``8xH100-80GB`` on which nothing runs."""
    from gpuward.sim.gpus import SimulatedGpus

    with tempfile.TemporaryDirectory(prefix="gpuctl-plan-") as claims_dir:
        try:
            return SimulatedGpus(spec, Path(claims_dir)).snapshot()
        except ValueError as error:
            raise BadSpec(str(error)) from error


def gpus_of_this_host() -> Snapshot:
    """Return what the NVIDIA driver lists; a snapshot that is unavailable, with the reason, where there is none."""
    from gpuward.host.gpus import NvmlGpus

    provider = NvmlGpus()
    try:
        return provider.snapshot()
    finally:
        provider.close()


def _refused(problems: tuple[Remark, ...], snapshot: Snapshot) -> Plan:
    return Plan(workers=(), problems=problems, warnings=(), gpus_needed=0, gpus_available=len(snapshot.gpus))


def _document(plan: Plan, warnings: tuple[Remark, ...]) -> PlanDocument:
    return {
        "schema_version": SCHEMA_VERSION,
        "ok": plan.ok,
        "workers": msgspec.to_builtins(plan.workers),
        "problems": msgspec.to_builtins(plan.problems),
        "warnings": msgspec.to_builtins((*warnings, *plan.warnings)),
        "gpus_needed": plan.gpus_needed,
        "gpus_available": plan.gpus_available,
    }
