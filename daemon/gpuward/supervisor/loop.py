"""The one loop and the single writer of state: an event in, policy decides, then record, perform, publish.

Everything here runs on the event loop's thread. It decides nothing itself: what follows from an event is
`policy.fleet.step`. An unexpected error ends the daemon; the keepers hold the workers and the next daemon adopts them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import assert_never

from gpuward.config.fleet import Pool
from gpuward.host.crash_points import around
from gpuward.host.processes import boot_id
from gpuward.policy.fleet import step as policy
from gpuward.policy.fleet.endpoints import Listing
from gpuward.policy.fleet.roll import Roll
from gpuward.policy.fleet.step import FleetState
from gpuward.policy.gpus.health import XidSeen
from gpuward.policy.gpus.inventory import Snapshot
from gpuward.policy.worker.ladder import said
from gpuward.policy.worker.life import (
    Adapted,
    Effect,
    Event,
    Forget,
    Kill,
    KillOrphan,
    KillRest,
    Note,
    Phase,
    StartRun,
    TakeSample,
    Terminate,
    Worker,
)
from gpuward.policy.worker.step import stays
from gpuward.supervisor import endpoints
from gpuward.supervisor.attribution import Attribution
from gpuward.supervisor.ends import Ends
from gpuward.supervisor.equipment import Equipment
from gpuward.supervisor.handles import Reports
from gpuward.supervisor.journal import Journal
from gpuward.supervisor.live_runs import Runner
from gpuward.supervisor.operations import Operations
from gpuward.supervisor.traces import Traces

MEMORY_MOVES = frozenset({Phase.STARTING, Phase.STOPPING, Phase.RELEASING})
"""Phases in which the GPUs are sampled more often."""


GOAL_NOT_SAVED = "goal-not-saved"


class Supervisor:
    """The loop. `submit` and `command` are for the loop's thread only."""

    def __init__(self, equipment: Equipment, journal: Journal, state: FleetState) -> None:
        self.state = state
        self.operations = Operations(equipment.records, lambda reason: self.notice("operations-not-saved", reason))
        self.attribution = Attribution()
        self.traces = Traces()
        self._equipment = equipment
        self._journal = journal
        self._ends = Ends(equipment, self.traces, lambda: self.state, self.submit, self.notice)
        reports = Reports(
            submit=self.submit,
            ended=self._ends.take,
            worker=self._worker,
            pool=self._pool,
            moments=self._ends.moments,
            port_blocks=self._port_blocks,
        )
        self._runner = Runner(equipment, reports)
        told = endpoints.Reports(change=self._relist, notice=self.notice, state=lambda: self.state)
        self.endpoints = endpoints.Endpoints(equipment.settings.endpoints, told)
        self._inbox: list[tuple[str, Event]] = []
        self._wake = asyncio.Event()
        self.keep_rolls: Callable[[], None] = lambda: None
        """Called when a roll has moved, before anything is performed: it must survive; a pool may have gone back."""

        self.notices: dict[str, str] = {}
        """What an operator has to mend, by kind (and file): part of ``status`` for as long as it holds."""

    def notice(self, kind: str, reason: str, about: str = "") -> None:
        """Note a trouble once, and keep it for ``status``; no reason: it is over."""
        key = f"{kind} {about}".strip()
        if not reason:
            self.notices.pop(key, None)
        elif self.notices.get(key) != reason:
            self.notices[key] = reason
            self._journal.note(kind, reason, level="warning")

    @property
    def runner(self) -> Runner:
        """The runs that live."""
        return self._runner

    @property
    def journal(self) -> Journal:
        """Events so far."""
        return self._journal

    def submit(self, worker: str, event: Event) -> None:
        """Queue an event for one worker."""
        self._inbox.append((worker, event))
        self._wake.set()

    def command(self, change: Callable[[FleetState, float], policy.Outcome]) -> None:
        """Apply a change of the whole state at once; its effects are performed before this returns."""
        self._commit(change(self.state, time.monotonic()))
        self._wake.set()

    def _relist(self, change: Callable[[Listing], Listing]) -> None:
        if self.state.listing is not None:
            self.command(partial(policy.relisted, listing=change(self.state.listing)))

    def observe(self, snapshot: Snapshot) -> None:
        """Take a sample of the GPUs in."""
        before = self.state.snapshot
        self.attribution.update(snapshot, self._runner.tracks())
        holders = dict(self.attribution.holders)
        self.traces.observe(snapshot, self.state.workers, self.attribution)
        self.command(lambda state, now_s: policy.observe(state, snapshot, now_s, holders))
        if before.state != snapshot.state:
            self._journal.note("inventory", f"GPU inventory is {snapshot.state}: {snapshot.reason or 'answers'}")

    async def run(self, on_turn: Callable[[], None]) -> None:
        """Turn until every worker is down after `policy.fleet.step.halt`; ``on_turn`` is called once per turn."""
        while True:
            self._wake.clear()
            events, self._inbox = self._inbox, []
            self._commit(policy.step(self.state, events, time.monotonic()))
            on_turn()
            if self.state.halting and self._all_down():
                return
            if not self._inbox:
                await self._until_something()

    def hurry(self) -> None:
        """Kill what still runs while the daemon stops."""
        for worker in self.state.workers.values():
            if worker.alive:
                self._runner.kill(worker.name)

    def adopt(
        self,
        pools: Mapping[str, Pool],
        workers: Mapping[str, Worker],
        rolls: Mapping[str, Roll],
        used_runs: Mapping[str, int],
    ) -> None:
        """Take over what an earlier daemon left: first the records, then the runs that they speak of."""
        rolling = {name: roll for name, roll in rolls.items() if name in pools}
        self.state = replace(self.state, pools=dict(pools), workers=dict(workers), rolls=rolling, used_runs=used_runs)
        for worker in workers.values():
            if worker.alive:
                with around("adopt"):
                    self._runner.adopt(worker, self.state.pool_of(worker))
        self.attribution.update(self.state.snapshot, self._runner.tracks())  # the first sample knew no run
        self.state = replace(self.state, holders=dict(self.attribution.holders))
        self.operations.resume()

    def _worker(self, name: str) -> Worker | None:
        return self.state.workers.get(name)

    def _pool(self, name: str) -> Pool | None:
        worker = self.state.workers.get(name)
        return self.state.pools[worker.pool] if worker is not None else None

    def heard(self, seen: XidSeen) -> None:
        """Take an error of a GPU in, for the runs that end next, and for those that have just ended."""
        for name, exit_ in self._ends.hear(seen):
            self.command(partial(policy.amended, worker=name, exit_=exit_))

    def _port_blocks(self) -> dict[str, int]:
        workers = self.state.workers.values()
        return {worker.name: worker.port_block for worker in workers if worker.port_block is not None}

    def _all_down(self) -> bool:
        now_s = time.monotonic()
        return not any(worker.alive and not stays(worker, now_s) for worker in self.state.workers.values())

    async def _until_something(self) -> None:
        deadline_s = policy.next_deadline_s(self.state, time.monotonic())
        wait_s = self._equipment.tick_s
        if deadline_s is not None:
            wait_s = min(wait_s, max(0.0, deadline_s - time.monotonic()))
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            return

    def _commit(self, outcome: policy.Outcome) -> None:
        """Record what must survive, perform, publish: in this order."""
        before, (self.state, effects) = self.state, outcome
        moved = [
            (before.workers.get(name), worker)
            for name, worker in self.state.workers.items()
            if before.workers.get(name) is not worker
        ]
        for old, new in moved:
            if old is None or _essence(old) != _essence(new):
                if old is None or old.goal is not new.goal:
                    self._record_goal(new)
                durable = old is None or (old.goal, old.device_uuids) != (new.goal, new.device_uuids)
                self._record(new, durable=durable)
        if before.rolls != self.state.rolls or before.pools != self.state.pools:
            self.keep_rolls()
        for effect in effects:
            with around(type(effect).__name__):
                self._perform(effect)
        for old, new in moved:
            if old is None or old.phase is not new.phase or old.run != new.run:
                with around("publish"):
                    self._journal.phase(old, new)
        self.endpoints.look()
        if moved or effects or before.rolls != self.state.rolls:
            self.operations.look(self.state)
            moving = any(worker.phase in MEMORY_MOVES for worker in self.state.workers.values())
            self._equipment.sampler.hurry(wanted=moving)

    def _record_goal(self, worker: Worker) -> None:
        try:
            with around("save goal"):
                self._equipment.records.save_goal(worker)
        except OSError as error:
            reason = (
                f"cannot save that {worker.name} is wanted {worker.goal} ({error.strerror}): "
                "a new daemon would not know; free space, then give the command again"
            )
            self.notice(GOAL_NOT_SAVED, reason, worker.name)
        else:
            self.notice(GOAL_NOT_SAVED, "", worker.name)

    def unsaved_goals(self, workers: Iterable[str]) -> list[str]:
        """Sentences on those of these workers whose goal could not be saved."""
        known = (self.notices.get(f"{GOAL_NOT_SAVED} {name}") for name in workers)
        return [reason for reason in known if reason is not None]

    def _record(self, worker: Worker, *, durable: bool) -> None:
        try:
            with around("save worker"):
                self._equipment.records.save_worker(worker, boot_id(), durable=durable)
        except OSError as error:
            reason = f"cannot save the state of {worker.name}: {error.strerror}; it is supervised all the same"
            self.notice("state-not-saved", reason, worker.name)
        else:
            self.notice("state-not-saved", "", worker.name)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case StartRun(worker=name):
                worker = self.state.workers[name]
                self.traces.begin(name)
                self._runner.start(worker, self.state.pool_of(worker))
            case Terminate(worker=name):
                self._runner.terminate(name)
            case Kill(worker=name):
                self._runner.kill(name)
            case KillRest(worker=name):
                self._runner.kill_rest(name)
            case TakeSample():
                self._equipment.sampler.request()
            case KillOrphan(worker=name, run=run):
                reason = f"processes of run {run} of {name}, which has ended, hold GPU memory: killed"
                self._journal.note("orphan-killed", reason, worker=name, run=run, level="warning")
                self._runner.kill_orphan(name, run)
            case Note(worker=name, kind=kind, reason=reason):
                self._journal.note(kind, reason, worker=name, level="warning")
            case Adapted(worker=name, run=run, step=step):
                self._journal.note("worker-adapted", f"run {run + 1} has {said(step)}", worker=name, level="warning")
                self._ends.add_step(name, run, step)
            case Forget(worker=name):
                self._equipment.records.forget(name, self.state.used_runs.get(name, 0))
                self._equipment.runs.forget(name)
                self._journal.note("forgotten", f"{name} is no longer in the fleet", worker=name)
            case _:
                assert_never(effect)


def _essence(worker: Worker) -> Worker:
    """The worker without what changes too often to be written each time: what it waits for."""
    return replace(worker, wait=None, reason="")
