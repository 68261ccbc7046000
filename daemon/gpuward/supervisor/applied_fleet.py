"""Which fleet runs: the one that was applied last, its revision, and whether the file of the start says otherwise.

Decodes and plans what clients send, and applies it through the supervisor. A file that does not decode or fit changes
nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from gpuward.config.errors import ConfigError
from gpuward.config.fleet import Fleet, Pool
from gpuward.host.crash_points import around
from gpuward.host.records import VERSION, StoredFleet
from gpuward.interop.fleet_files import decode_fleet
from gpuward.policy.fleet.apply import Applied, apply, more_than_a_roll, roll_outdated
from gpuward.policy.fleet.step import begin_roll, settle
from gpuward.policy.reasons import By, named
from gpuward.policy.worker.definition import definition, outdated
from gpuward.policy.worker.life import Goal
from gpuward.supervisor.equipment import Equipment
from gpuward.supervisor.loop import Supervisor
from gpuward.supervisor.planning import Decoded, FleetText, Planner, Proposal, read_fleet_file, summary, unreadable


class Fleets:
    """The applied fleet of one daemon. ``start_file`` is the file that the daemon was started with."""

    def __init__(self, supervisor: Supervisor, equipment: Equipment, start_file: Path | None) -> None:
        self.start_file = start_file.absolute() if start_file is not None else None
        self.stored: StoredFleet | None = None
        self.drift_reason: str | None = None
        self.drift_advice = ""
        self._seen = _looks(None)
        self._supervisor = supervisor
        self._records = equipment.records
        self.planner = Planner(supervisor, equipment)
        supervisor.keep_rolls = self._keep_rolls

    @property
    def revision(self) -> int:
        """Revision of the applied fleet; 0 before the first."""
        return self.stored.revision if self.stored is not None else 0

    def propose(self, file: Decoded, *, prune: bool = False) -> Proposal:
        """Decode and plan a file against what runs now; ``prune``: pools that it does not name are to go."""
        return self.planner.propose(file, self._applied, prune=prune)

    def changes_nothing(self, proposal: Proposal) -> bool:
        """Whether the applied fleet says the same already, and every worker is as it says."""
        if self.stored is None or proposal.fleet is None or proposal.fleet.pools != self.stored.fleet.pools:
            return False
        return all(change.action == "keep" for change in proposal.changes)

    def propose_scale(self, pool: str, workers: int) -> Proposal:
        """The applied fleet with another number of workers in one pool; KeyError where there is no such pool.

        Of its warnings those that concern this pool, or are new: the others were said when the file was applied.
        """
        if self.stored is None:
            raise KeyError(pool)
        changed = structs.replace(self.stored.fleet.pool(pool), workers=workers)
        source = FleetText(text="", name=self.stored.source, directory="/")
        known = self.planner.proposal(source, self.stored.fleet, self.stored.fleet).plan.warnings
        proposal = self.planner.proposal(source, _with_pool(self.stored.fleet, changed), self._applied)
        news = tuple(remark for remark in proposal.plan.warnings if remark.pool == pool or remark not in known)
        return replace(proposal, plan=replace(proposal.plan, warnings=news))

    def propose_roll(self, name: str, file: Decoded) -> Proposal:
        """Decode and plan a file that may change nothing but the definition of one pool."""
        proposal = self.propose(file)
        if self.stored is None or proposal.fleet is None or not proposal.plan.ok:
            return proposal
        beside = more_than_a_roll(name, self.stored.fleet, proposal.fleet, proposal.changes)
        if beside is None:
            return proposal
        return replace(proposal, plan=replace(proposal.plan, workers=(), problems=(beside,)))

    @property
    def _applied(self) -> Fleet | None:
        return self.stored.fleet if self.stored is not None else None

    def apply(self, proposal: Proposal, *, unsaved: bool = False, force: bool = False, by: By | None = None) -> int:
        """Make a proposal that fits the fleet; return its revision. Durable before any worker is touched.

        OSError where it cannot be saved, PortsExhausted where too many ports are taken: nothing has changed then.
        ``unsaved``: go on where it cannot be saved, for want of a fleet the workers would have none at all. ``force``:
        neither the last ready worker of a pool nor what would not come back is spared. ``by``: who asked.
        """
        assert proposal.fleet is not None
        assert proposal.plan.ok
        if self.stored is not None and self.changes_nothing(proposal):
            return self._keep_revision(self.stored, proposal)
        ports = self.planner.ports(proposal.fleet)
        applied = Applied(proposal.fleet, proposal.plan, proposal.changes, ports, force, by)
        stored = self._next(proposal.fleet, proposal.source, whole=not proposal.left)
        self._save(stored, unsaved=unsaved)
        self._become(stored, summary(proposal.changes), by)
        self._tell_unenforced(proposal.fleet)
        self._supervisor.command(lambda state, now_s: apply(state, applied, now_s))
        self.look_for_drift()
        return stored.revision

    def _keep_revision(self, stored: StoredFleet, proposal: Proposal) -> int:
        """Another text that says the same is no new revision; the file of the start may be this text now."""
        source = proposal.source
        digest = source.digest if source.text and not proposal.left else stored.digest
        if digest != stored.digest:
            self.stored = structs.replace(stored, digest=digest, source=source.name)
            self._save(self.stored, unsaved=True)
        self.look_for_drift()
        return stored.revision

    def roll(self, name: str, proposal: Proposal, *, force: bool = False, by: By | None = None) -> int:
        """Give one pool the definition of a proposal that changes nothing else, worker by worker; else as `apply`."""
        assert proposal.fleet is not None
        assert self.stored is not None
        pool, earlier = proposal.fleet.pool(name), self.stored.fleet.pool(name)
        back_to = earlier if definition(earlier) != definition(pool) else None
        begun = begin_roll(self._supervisor.state, pool, back_to, force=force, by=by)
        stored = structs.replace(self._next(proposal.fleet, proposal.source), rolls=dict(begun.rolls))
        self._save(stored, unsaved=False)
        self._become(stored, f"pool {name} is rolled to it", by)
        self._supervisor.command(
            lambda state, now_s: settle(begin_roll(state, pool, back_to, force=force, by=by), now_s)
        )
        self.look_for_drift()
        return stored.revision

    def _next(self, fleet: Fleet, source: FleetText, *, whole: bool = True) -> StoredFleet:
        """The next revision; it goes on with what is being rolled. ``whole``: the fleet is what the file says."""
        return StoredFleet(
            version=VERSION,
            revision=self.revision + 1,
            source=source.name,
            digest=source.digest if source.text and whole else "",
            applied_at=time.time(),
            fleet=fleet,
            rolls=dict(self._supervisor.state.rolls),
        )

    def _become(self, stored: StoredFleet, what: str, by: By | None = None) -> None:
        self.stored = stored
        told = named(f"revision {stored.revision} of {stored.source}: {what}", by)
        self._supervisor.journal.note("fleet-applied", told, by=by)

    def _keep_rolls(self) -> None:
        """Keep how far rolls have come; a pool that one has taken back to its earlier definition is a new revision."""
        if self.stored is None:
            return
        rolls, pools = dict(self._supervisor.state.rolls), self._supervisor.state.pools
        fleet = self.stored.fleet
        back = [pools[pool.name] for pool in fleet.pools if pools.get(pool.name, pool) != pool]
        if not back and self.stored.rolls == rolls:
            return
        for pool in back:
            fleet = _with_pool(fleet, pool)
        source = FleetText(text="", name=f"the roll back of {self.stored.source}", directory="/")
        stored = self._next(fleet, source) if back else structs.replace(self.stored, rolls=rolls)
        self._save(stored, unsaved=True)
        if back:
            self._become(stored, f"pool {', '.join(pool.name for pool in back)} back at its earlier definition")
            self.look_for_drift()
        self.stored = stored

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
        plan = self.planner.plan(fleet, state.snapshot, {name: one.device_uuids for name, one in state.workers.items()})
        if not plan.ok:
            reason = f"revision {self.revision} goes on with the devices that are known: {plan.problems[0].message}"
            self._supervisor.notice("fleet-does-not-fit", reason)
            return False
        self._supervisor.notices.pop("fleet-does-not-fit", None)
        applied = Applied(fleet, plan, (), self.planner.ports(fleet))
        self._supervisor.command(lambda state, now_s: apply(state, applied, now_s))
        return True

    def roll_outdated(self, started_as: Mapping[str, Pool]) -> None:
        """Restart, in turn, every run that was started with something else than the fleet says now.

        ``started_as``: the pool that a worker's run was started from, where that is known; it names the keys.
        """
        state = self._supervisor.state
        reasons: dict[str, str] = {}
        for worker in state.workers.values():
            if worker.pool in state.rolls:
                continue
            settled = worker.alive and worker.goal is Goal.UP and worker.ending is None and not worker.removed
            reason = outdated(worker, state.pools[worker.pool], started_as.get(worker.name)) if settled else ""
            if reason:
                self._supervisor.journal.note("definition-changed", reason, worker=worker.name, level="warning")
                reasons[worker.name] = reason
        if reasons:
            self._supervisor.command(lambda state, now_s: roll_outdated(state, reasons, started_as, now_s))

    def look_for_drift(self) -> None:
        """Compare the file of the start with what is applied."""
        self._seen = _looks(self.start_file)
        self.drift_reason, self.drift_advice = self._drift() or (None, "")

    def look_again(self) -> None:
        """Compare anew where the file was written since."""
        if _looks(self.start_file) != self._seen:
            self.look_for_drift()

    def _drift(self) -> tuple[str, str] | None:
        """What the file of the start says otherwise, and what to do about it."""
        if self.start_file is None:
            return None
        if self.stored is None:
            return f"{self.start_file} is not applied yet", "gpuctl reload applies it"
        try:
            source = read_fleet_file(self.start_file)
        except (OSError, ValueError) as error:
            reason = f"{self.start_file} cannot be read ({unreadable(error)}); revision {self.revision} goes on"
            return reason, "fix the file, then gpuctl diff"
        if source.digest == self.stored.digest:
            return None
        try:
            fleet = decode_fleet(source.text, file=source.name, directory=source.directory)
        except ConfigError as error:
            reason = f"{self.start_file} has errors, revision {self.revision} goes on: {error.named[0].message}"
            return reason, "fix the file, then gpuctl diff"
        if fleet.pools == self.stored.fleet.pools:
            return None
        reason = f"{self.start_file} differs from the applied revision {self.revision}"
        if self.stored.source == self.start_file.name:
            return reason, "gpuctl diff shows how, gpuctl reload applies it"
        of = f"gpuctl reload would undo revision {self.revision} ({self.stored.source})"
        return reason, f"gpuctl diff shows how; {of}: put what it changed into the file first"

    def _tell_unenforced(self, fleet: Fleet) -> None:
        for remark in self.planner.unenforced(fleet):
            self._supervisor.journal.note(remark.code, remark.message, level="warning")


def _with_pool(fleet: Fleet, pool: Pool) -> Fleet:
    """The fleet with this pool in the place of the one of its name."""
    return structs.replace(fleet, pools=tuple(pool if one.name == pool.name else one for one in fleet.pools))


def _looks(path: Path | None) -> tuple[int, int, int]:
    """What tells that a file was written: inode, time of its last change in nanoseconds, size; zeros for none."""
    try:
        known = path.stat() if path is not None else None
    except OSError:
        known = None
    return (known.st_ino, known.st_mtime_ns, known.st_size) if known is not None else (0, 0, 0)
