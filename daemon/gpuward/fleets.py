"""Which fleet runs: the one that was applied last, its revision, and whether the file of the start says otherwise.

Decodes and plans what clients send, and applies it through the supervisor. A file that does not decode or fit changes
nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from msgspec import structs

from gpuward.config.errors import ConfigError
from gpuward.config.fleet import Fleet, Pool, Remark
from gpuward.engines.build import http_port
from gpuward.equipment import Equipment
from gpuward.host.boundary import around
from gpuward.host.ports import listening
from gpuward.host.records import VERSION, StoredFleet
from gpuward.interop.fleet_files import decode_fleet
from gpuward.policy.apply import Applied, Ports, apply
from gpuward.policy.fleet import step
from gpuward.policy.inventory import Snapshot
from gpuward.policy.life import Event, Goal, RestartAsked
from gpuward.policy.placement import place
from gpuward.policy.plan import Plan
from gpuward.policy.ports import assign, explicit_ports, problems
from gpuward.policy.reload import Change, compare, outdated
from gpuward.supervisor import Supervisor

FILE_MAX_BYTES = 4 * 1024**2


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A fleet that was decoded and planned; ``fleet`` is None where the file could not be decoded."""

    source: FleetText
    fleet: Fleet | None
    plan: Plan
    changes: tuple[Change, ...]


def read_fleet_file(path: Path) -> FleetText:
    """Read a fleet file; OSError or ValueError where it is not there, not text, or larger than a fleet can be."""
    size = path.stat().st_size
    if size > FILE_MAX_BYTES:
        raise ValueError(f"it has {size} bytes, a fleet file at most {FILE_MAX_BYTES}")
    return FleetText(text=path.read_text(encoding="utf-8"), name=path.name, directory=str(path.absolute().parent))


class Fleets:
    """The applied fleet of one daemon. ``start_file`` is the file that the daemon was started with."""

    def __init__(self, supervisor: Supervisor, equipment: Equipment, start_file: Path | None) -> None:
        self.start_file = start_file
        self.stored: StoredFleet | None = None
        self.drift_reason: str | None = None
        self._seen = _looks(None)
        self._supervisor = supervisor
        self._records = equipment.records
        self._settings = equipment.settings
        self._no_cgroups = equipment.cgroups.refusal

    @property
    def revision(self) -> int:
        """Revision of the applied fleet; 0 before the first."""
        return self.stored.revision if self.stored is not None else 0

    def propose(self, source: FleetText) -> Proposal:
        """Decode and plan a file against what runs now."""
        try:
            fleet = decode_fleet(source.text, file=source.name, directory=source.directory)
        except ConfigError as error:
            plan = Plan(workers=(), problems=error.named, warnings=(), gpus_needed=0, gpus_available=0)
            return Proposal(source=source, fleet=None, plan=plan, changes=())
        return self._planned(source, fleet)

    def propose_scale(self, pool: str, workers: int) -> Proposal:
        """The applied fleet with another number of workers in one pool; KeyError where there is no such pool."""
        if self.stored is None:
            raise KeyError(pool)
        self.stored.fleet.pool(pool)
        pools = tuple(
            structs.replace(one, workers=workers) if one.name == pool else one for one in self.stored.fleet.pools
        )
        source = FleetText(text="", name=self.stored.source, directory="/")
        return self._planned(source, structs.replace(self.stored.fleet, pools=pools))

    def apply(self, proposal: Proposal, *, unsaved: bool = False) -> int:
        """Make a proposal that fits the fleet; return its revision. Durable before any worker is touched.

        OSError where it cannot be saved, PortsExhausted where too many ports are taken: nothing has changed then.
        ``unsaved``: go on where it cannot be saved, for want of a fleet the workers would have none at all.
        """
        assert proposal.fleet is not None
        assert proposal.plan.ok
        fleet, plan, changes = proposal.fleet, proposal.plan, proposal.changes
        ports = self._ports(fleet)
        digest = proposal.source.digest if proposal.source.text else (self.stored.digest if self.stored else "")
        stored = StoredFleet(
            version=VERSION,
            revision=self.revision + 1,
            source=proposal.source.name,
            digest=digest,
            applied_at=time.time(),
            fleet=fleet,
        )
        self._save(stored, unsaved=unsaved)
        self.stored = stored
        self._supervisor.journal.note(
            "fleet-applied", f"revision {stored.revision} of {stored.source}: {summary(changes)}"
        )
        self._tell_unenforced(fleet)
        self._supervisor.command(lambda state, now_s: apply(state, Applied(fleet, plan, changes, ports), now_s))
        self.look_for_drift()
        return stored.revision

    def _save(self, stored: StoredFleet, *, unsaved: bool) -> None:
        try:
            with around("save fleet"):
                self._records.save_fleet(stored)
        except OSError as error:
            if not unsaved:
                raise
            self._supervisor.notice("fleet-not-saved", f"the fleet is applied, but not saved: {error.strerror}")

    def reconstruct(self, sizes: Mapping[str, int], why: str) -> None:
        """Make the pools of what runs the fleet, with so many workers each; ``why`` there is no other."""
        pools = self._supervisor.state.pools
        fleet = Fleet(pools=tuple(structs.replace(pools[name], workers=size) for name, size in sizes.items()))
        known = ", ".join(f"{name} x {size}" for name, size in sizes.items())
        self._supervisor.notice("fleet-reconstructed", f"{why}; what runs is the fleet now: {known}; apply yours again")
        stored = StoredFleet(
            version=VERSION, revision=1, source="what-ran", digest="", applied_at=time.time(), fleet=fleet
        )
        self._save(stored, unsaved=True)
        self.stored = stored
        self.look_for_drift()

    def resume(self) -> None:
        """Go on with the fleet that was applied last, if there is one; the file of the start is only compared."""
        self.stored = self._records.load_fleet()
        if self.stored is not None:
            self._tell_unenforced(self.stored.fleet)
        self.look_for_drift()

    def settle(self) -> bool:
        """Bring the workers in line with the applied fleet: a crash may have come between the two records.

        False where the fleet does not fit the host as it is now: nothing has changed then.
        """
        if self.stored is None:
            return False
        fleet = self.stored.fleet
        state = self._supervisor.state
        plan = self.plan(fleet, state.snapshot, {name: one.device_uuids for name, one in state.workers.items()})
        if not plan.ok:
            reason = f"revision {self.revision} goes on with the devices that are known: {plan.problems[0].message}"
            self._supervisor.notice("fleet-does-not-fit", reason)
            return False
        self._supervisor.notices.pop("fleet-does-not-fit", None)
        applied = Applied(fleet, plan, (), self._ports(fleet))
        self._supervisor.command(lambda state, now_s: apply(state, applied, now_s))
        return True

    def roll_outdated(self, started_as: Mapping[str, Pool]) -> None:
        """Restart, by command, every run that was started with something else than the fleet says now.

        ``started_as``: the pool that a worker's run was started from, where that is known; it names the keys.
        """
        state = self._supervisor.state
        events: list[tuple[str, Event]] = []
        for worker in state.workers.values():
            settled = worker.alive and worker.goal is Goal.UP and worker.then is None and not worker.removed
            reason = outdated(worker, state.pools[worker.pool], started_as.get(worker.name)) if settled else ""
            if reason:
                self._supervisor.journal.note("definition-changed", reason, worker=worker.name, level="warning")
                events.append((worker.name, RestartAsked(reason)))
        if events:
            self._supervisor.command(lambda state, now_s: step(state, events, now_s))

    def look_for_drift(self) -> None:
        """Compare the file of the start with what is applied."""
        self._seen = _looks(self.start_file)
        self.drift_reason = self._drift()

    def look_again(self) -> None:
        """Compare anew where the file was written since."""
        if _looks(self.start_file) != self._seen:
            self.look_for_drift()

    def _drift(self) -> str | None:
        if self.start_file is None:
            return None
        if self.stored is None:
            return f"{self.start_file} is not applied yet"
        try:
            source = read_fleet_file(self.start_file)
        except (OSError, ValueError) as error:
            return f"{self.start_file} cannot be read ({error}); revision {self.revision} goes on"
        if source.digest == self.stored.digest:
            return None
        try:
            fleet = decode_fleet(source.text, file=source.name, directory=source.directory)
        except ConfigError as error:
            return f"{self.start_file} has errors, revision {self.revision} goes on: {error.named[0].message}"
        if fleet.pools == self.stored.fleet.pools:
            return None
        return f"{self.start_file} differs from the applied revision {self.revision}"

    def _planned(self, source: FleetText, fleet: Fleet) -> Proposal:
        state = self._supervisor.state
        devices = {name: worker.device_uuids for name, worker in state.workers.items() if not worker.removed}
        plan = self.plan(fleet, state.snapshot, devices)
        old = self.stored.fleet if self.stored is not None else None
        return Proposal(source=source, fleet=fleet, plan=plan, changes=compare(old, fleet, devices, plan))

    def plan(self, fleet: Fleet, snapshot: Snapshot, devices: Mapping[str, tuple[str, ...]]) -> Plan:
        """Place a fleet on this host; workers that keep their definition keep their devices."""
        plan = place(
            fleet.pools,
            snapshot,
            excluded=self._settings.inventory.exclude,
            closed=self._closed(devices),
            claims_per_gpu=self._settings.limits.claims_per_gpu,
            current={name: uuids for name, uuids in devices.items() if uuids},
        )
        plan = replace(plan, warnings=(*fleet.warnings, *self._unenforced(fleet), *plan.warnings))
        trouble = problems(fleet.pools, self._settings.ports)
        return replace(plan, workers=(), problems=(*plan.problems, *trouble)) if trouble else plan

    def _closed(self, devices: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
        """GPUs that take no new worker; who has one keeps its place there, and is held back by `policy.admission`."""
        had = {uuid for uuids in devices.values() for uuid in uuids}
        return {uuid: why for uuid, why in self._supervisor.state.closed.items() if uuid not in had}

    def _unenforced(self, fleet: Fleet) -> tuple[Remark, ...]:
        """Limits of host memory that this host does not let us keep."""
        limited = [pool for pool in fleet.pools if pool.memory_max is not None] if self._no_cgroups else []
        return tuple(
            Remark(
                code="memory-max-not-enforced",
                pool=pool.name,
                message=f"pool '{pool.name}': memory-max = {pool.memory_max} is not enforced: {self._no_cgroups}",
            )
            for pool in limited
        )

    def _tell_unenforced(self, fleet: Fleet) -> None:
        for remark in self._unenforced(fleet):
            self._supervisor.journal.note(remark.code, remark.message, level="warning")

    def _ports(self, fleet: Fleet) -> dict[str, Ports]:
        """Ports of each worker; those that have a block keep it."""
        workers = self._supervisor.state.workers
        names = [name for pool in fleet.pools for name in pool.worker_names]
        current = {name: worker.port_block for name, worker in workers.items() if worker.port_block is not None}
        busy = {*explicit_ports(fleet.pools).values(), *(socket.port for socket in listening())}
        blocks = assign(names, self._settings.ports, current, busy)
        ports = {}
        for pool in fleet.pools:
            for index, name in enumerate(pool.worker_names):
                block = range(blocks[name], blocks[name] + self._settings.ports.per_worker)
                ports[name] = Ports(block=block[0], serves_on=http_port(pool, index, block) if serves(pool) else None)
        return ports


def _looks(path: Path | None) -> tuple[int, int, int]:
    """What tells that a file was written: inode, time of its last change in nanoseconds, size; zeros for none."""
    try:
        known = path.stat() if path is not None else None
    except OSError:
        known = None
    return (known.st_ino, known.st_mtime_ns, known.st_size) if known is not None else (0, 0, 0)


def summary(changes: tuple[Change, ...]) -> str:
    """Count changes by what they do."""
    counts: dict[str, int] = {}
    for change in changes:
        counts[change.action] = counts.get(change.action, 0) + 1
    return ", ".join(f"{count} {action}" for action, count in counts.items()) or "no worker changes"


def serves(pool: Pool) -> bool:
    """Whether workers of the pool listen on a port that they are given."""
    if pool.engine != "command" or pool.port is not None:
        return True
    return any("{port}" in word for word in (*pool.command, pool.ready_url or ""))
