"""Plans a fleet without a daemon: on this host's GPUs as the driver lists them, or on simulated ones if asked for.

Nothing runs, nothing is applied. It is the plan that a daemon with the same host file would make on an idle host; where
it could not read that file, it says so.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import msgspec

from gpuward.config.errors import ConfigError
from gpuward.config.files import read_file
from gpuward.config.fleet import Remark
from gpuward.config.host import HostSettings
from gpuward.config.host_file import decode_host_toml
from gpuward.control.documents import FleetText
from gpuward.control.documents import Plan as PlanDocument
from gpuward.control.protocol import SCHEMA_VERSION
from gpuward.engines.cut_off import cut_off
from gpuward.engines.launch import HostContext
from gpuward.interop.fleet_files import decode_fleet
from gpuward.policy.gpus.inventory import Snapshot
from gpuward.policy.gpus.modes import barred_gpus
from gpuward.policy.placement.host_plan import plan_on_host
from gpuward.policy.placement.plan import Plan

HOST_FILE = "/etc/gpuward/gpuward.toml"


class BadSpec(Exception):
    """A simulation, or a host file, that cannot be had."""


def plan_locally(fleet: FleetText, *, simulate: str | None, config: str | None = None) -> PlanDocument:
    """Return the document of ``gpuctl plan -o json`` for ``fleet``; BadSpec where ``simulate`` is no host.

    ``config``: the host file; None is the usual one, if it is there. BadSpec where the one that is named is none.
    A file that does not decode is a refused plan with everything that is wrong in it.
    """
    settings, remarks = _settings(config)
    snapshot = simulated_gpus(simulate) if simulate is not None else gpus_of_this_host()
    try:
        decoded = decode_fleet(fleet["text"], file=fleet["name"], directory=fleet["directory"])
    except ConfigError as error:
        return _document(_refused(error.named, snapshot))
    if simulate is None:  # else it is another host's vLLM that is going to run
        here = HostContext(python=sys.executable, simulated=False, inherited_env=os.environ)
        remarks = *remarks, *cut_off(decoded.pools, here)
    plan = plan_on_host(decoded, snapshot, settings, closed=barred_gpus(snapshot), current={}, warnings=remarks)
    return _document(plan)


def _settings(config: str | None) -> tuple[HostSettings, tuple[Remark, ...]]:
    """The host's settings; defaults and a warning where the usual file cannot be read."""
    path = config or HOST_FILE
    try:
        return decode_host_toml(read_file(path), file=path), ()
    except FileNotFoundError:
        if config is None:
            return HostSettings(), ()
        raise BadSpec(f"cannot read {path}: there is no such file") from None
    except (OSError, ValueError, ConfigError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        if config is not None:
            raise BadSpec(f"cannot use {path}: {reason}") from None
        message = f"planned with default host settings: {path} cannot be used ({reason})"
        return HostSettings(), (Remark(code="host-file-not-read", pool=None, message=message),)


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


def _document(plan: Plan) -> PlanDocument:
    return {
        "schema_version": SCHEMA_VERSION,
        "ok": plan.ok,
        "workers": msgspec.to_builtins(plan.workers),
        "problems": msgspec.to_builtins(plan.problems),
        "warnings": msgspec.to_builtins(plan.warnings),
        "gpus_needed": plan.gpus_needed,
        "gpus_available": plan.gpus_available,
    }
