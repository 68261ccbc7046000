"""What a fleet file would make of this host: decoded, planned against what runs, with its ports. Changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gpuward.config.errors import ConfigError
from gpuward.config.files import read_file
from gpuward.config.fleet import Fleet, Remark
from gpuward.engines.cut_off import cut_off
from gpuward.host.ports import listening
from gpuward.interop.fleet_files import decode_fleet
from gpuward.policy.fleet.apply import Ports
from gpuward.policy.fleet.changes import Change, compare
from gpuward.policy.fleet.untouched import remarks_of_left, told_as_left, told_as_stopped, with_pools_left
from gpuward.policy.gpus.inventory import Snapshot
from gpuward.policy.placement.host_plan import plan_on_host
from gpuward.policy.placement.plan import Plan
from gpuward.policy.placement.ports import assign, explicit_ports, served_port
from gpuward.policy.worker.life import Goal, Worker
from gpuward.supervisor.equipment import Equipment
from gpuward.supervisor.loop import Supervisor


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetText:
    """A fleet file as somebody read it; relative paths in it are relative to ``directory``."""

    text: str
    name: str
    directory: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text, hexadecimal."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()


NAMED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A fleet that was decoded and planned; ``fleet`` is None where the file could not be decoded.

    ``left``: pools of it that are not in the file, and go on as they are.
    """

    source: FleetText
    fleet: Fleet | None
    plan: Plan
    changes: tuple[Change, ...]
    left: frozenset[str] = frozenset()


def read_fleet_file(path: Path) -> FleetText:
    """Read a fleet file; OSError or ValueError where it is not there, not text, or larger than a fleet can be."""
    return FleetText(text=read_file(str(path)), name=path.name, directory=str(path.absolute().parent))


def unreadable(error: OSError | ValueError) -> str:
    """Why a fleet file could not be read, without its path, which whoever tells it has named."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A fleet file that was decoded; ``fleet`` is None where ``problems`` say why it could not be."""

    source: FleetText
    fleet: Fleet | None
    problems: tuple[Remark, ...] = ()


def decoded(source: FleetText) -> Decoded:
    """Decode a file. Up to a second for the largest: not for the loop's thread where a request brings it."""
    try:
        fleet = decode_fleet(source.text, file=source.name, directory=source.directory)
    except ConfigError as error:
        return Decoded(source=source, fleet=None, problems=error.named)
    return Decoded(source=source, fleet=fleet)


class Planner:
    """Plans fleets against the present state of one supervisor."""

    def __init__(self, supervisor: Supervisor, equipment: Equipment) -> None:
        self._supervisor = supervisor
        self._settings = equipment.settings
        self._context = equipment.context
        self._no_cgroups = equipment.cgroups.refusal

    def propose(self, file: Decoded, old: Fleet | None, *, prune: bool) -> Proposal:
        """Plan a file in the place of ``old``; the pools that it does not name stay, unless ``prune``."""
        source, fleet = file.source, file.fleet
        if fleet is None:
            plan = Plan(workers=(), problems=file.problems, warnings=(), gpus_needed=0, gpus_available=0)
            return Proposal(source=source, fleet=None, plan=plan, changes=())
        if prune:
            return self.proposal(source, fleet, old)
        whole = with_pools_left(fleet, old)
        left = {pool.name for pool in whole.pools} - {pool.name for pool in fleet.pools}
        proposal = self.proposal(source, whole, old)
        changes = told_as_left(proposal.changes, left)
        warnings, problems = remarks_of_left(changes, left)
        plan = replace(proposal.plan, warnings=(*proposal.plan.warnings, *warnings))
        if problems:
            plan, changes = replace(plan, workers=(), problems=(*plan.problems, *problems)), ()
        return replace(proposal, plan=plan, changes=changes, left=frozenset(left))

    def proposal(self, source: FleetText, fleet: Fleet, old: Fleet | None) -> Proposal:
        """Plan a fleet in the place of ``old``; a run that has its definition already is none that changes."""
        workers = self._supervisor.state.workers
        devices = {name: worker.device_uuids for name, worker in workers.items() if not worker.removed}
        running = {name: worker.definition for name, worker in workers.items() if _runs_as_placed(worker)}
        plan = self.plan(fleet, self._supervisor.state.snapshot, devices)
        down = {name for name, worker in workers.items() if worker.goal is Goal.DOWN and not worker.alive}
        changes = told_as_stopped(compare(old, fleet, devices, plan, running), down)
        return Proposal(source=source, fleet=fleet, plan=plan, changes=changes)

    def plan(self, fleet: Fleet, snapshot: Snapshot, devices: Mapping[str, tuple[str, ...]]) -> Plan:
        """Place a fleet on this host; workers that keep their definition keep their devices."""
        return plan_on_host(
            fleet,
            snapshot,
            self._settings,
            closed=self._closed(devices),
            current=devices,
            warnings=self.unenforced(fleet),
        )

    def _closed(self, devices: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
        """GPUs that take no new worker; who has one keeps it, and is held back by `policy.fleet.admission`."""
        had = {uuid for uuids in devices.values() for uuid in uuids}
        return {uuid: why for uuid, why in self._supervisor.state.closed.items() if uuid not in had}

    def unenforced(self, fleet: Fleet) -> tuple[Remark, ...]:
        """What the fleet asks for and does not get here: limits of host memory, drains."""
        return *self._without_limits(fleet), *cut_off(fleet.pools, self._context)

    def _without_limits(self, fleet: Fleet) -> tuple[Remark, ...]:
        limited = [pool for pool in fleet.pools if pool.memory_max is not None] if self._no_cgroups else []
        return tuple(
            Remark(
                code="memory-max-not-enforced",
                pool=pool.name,
                message=f"pool '{pool.name}': memory-max = {pool.memory_max} is not enforced: {self._no_cgroups}",
            )
            for pool in limited
        )

    def ports(self, fleet: Fleet) -> dict[str, Ports]:
        """Ports of each worker; those that have a block keep it."""
        workers = self._supervisor.state.workers
        names = [name for pool in fleet.pools for name in pool.worker_names]
        current = {name: worker.port_block for name, worker in workers.items() if worker.port_block is not None}
        busy = {*explicit_ports(fleet.pools).values(), *(socket.port for socket in listening())}
        blocks = assign(names, self._settings.ports, current, busy)
        ports = {}
        for pool in fleet.pools:
            for index, name in enumerate(pool.worker_names):
                ports[name] = Ports(block=blocks[name], serves_on=served_port(pool, index, blocks[name]))
        return ports


def _runs_as_placed(worker: Worker) -> bool:
    """Whether its run stays, and is on the GPUs that it is to have: a roll may have to come to it yet."""
    return worker.alive and worker.ending is None and worker.run_uuids == worker.device_uuids


def summary(changes: tuple[Change, ...]) -> str:
    """Count changes by what they do; who is stopped is named."""
    workers: dict[str, list[str]] = {}
    for change in changes:
        workers.setdefault(change.action, []).append(change.worker)
    told = [
        f"{len(names)} {action}" + (f" ({', '.join(names[:NAMED])})" if action == "stop" else "")
        for action, names in workers.items()
    ]
    return ", ".join(told) or "no worker changes"
