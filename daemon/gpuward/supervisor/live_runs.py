"""Performs what policy decided about runs: starts keepers, signals, finds out how runs ended.

It holds the handles of living runs; it decides nothing. What it learns goes back as events.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from gpuward.config.fleet import Pool
from gpuward.engines.launch import CannotLaunch, Launch
from gpuward.host.address import Readiness
from gpuward.host.live import LiveRun, sweep
from gpuward.host.processes import Identity, same
from gpuward.host.runs import StillRunning
from gpuward.policy.diagnosis.causes import own_signatures
from gpuward.policy.worker.life import Goal, Phase, StartRefused, Worker
from gpuward.supervisor.attribution import Tracks
from gpuward.supervisor.equipment import Equipment
from gpuward.supervisor.handles import Handle, Reports, Tasks
from gpuward.supervisor.output import LogReading
from gpuward.supervisor.postmortem import DeadRun, Findings, examine, judged, never_started
from gpuward.supervisor.starting import known_marker, planned, port_taken, prune_logs, run_spec
from gpuward.supervisor.sweeping import LINGERS_AFTER_S, Sweeping
from gpuward.supervisor.traces import wall_time
from gpuward.supervisor.watching import Watching

READ_EVERY_S = 1.0
"""Pause between two looks at who has printed much."""

ANNOUNCED_WITHIN_S = 10.0
"""A keeper that holds its worker's lock names itself within milliseconds; on a swapping host, within this."""


class Runner:
    """All living runs, by worker."""

    def __init__(self, equipment: Equipment, reports: Reports) -> None:
        self.handles: dict[str, Handle] = {}
        self._equipment = equipment
        self._reports = reports
        self._tasks = Tasks()
        self._watching = Watching(equipment, reports, self._tasks)
        self._reads_ahead = False
        self._sweeping = Sweeping(equipment, reports.submit)

    def start(self, worker: Worker, pool: Pool) -> None:
        """Start the worker's run; what keeps it from starting comes back as an event."""
        try:
            plan = planned(self._equipment, worker, pool)
        except CannotLaunch as error:
            self._reports.ended(never_started(worker.name, worker.run, error))
            return
        blocks = self._reports.port_blocks()
        refused = port_taken(self._equipment, worker, pool, blocks) or self._spawn(worker, pool, plan)
        if refused is not None:
            self._reports.submit(worker.name, refused)

    def adopt(self, worker: Worker, pool: Pool) -> None:
        """Take over the run that an earlier daemon left, or learn how it ended."""
        keeper = self._equipment.runs.keeper_identity(worker.name, worker.run)
        if keeper is None:
            self._tasks.begin(self._await_keeper(worker, pool))
        else:
            self._take_over(worker, pool, keeper)

    def terminate(self, name: str) -> None:
        """SIGTERM to a worker's main process."""
        if handle := self.handles.get(name):
            self._watching.stop(handle)
            handle.live.terminate()
            self._watching.until_drained(handle)

    def kill(self, name: str) -> None:
        """SIGKILL to a worker's whole tree."""
        if handle := self.handles.get(name):
            handle.live.kill()

    def kill_rest(self, name: str) -> None:
        """SIGKILL to what is left of a tree, to its keeper only where nothing is: it holds the leases meanwhile."""
        if handle := self.handles.get(name):
            self._tasks.begin(self._kill_rest(handle))

    async def _kill_rest(self, handle: Handle) -> None:
        left = await self._sweeping.look_at(handle.live, kill=True)
        if not left and handle.rested and self.handles.get(handle.live.worker) is handle:
            handle.live.kill_keeper()
        handle.rested = not left

    def kill_orphan(self, name: str, run: int) -> None:
        """SIGKILL to what carries the marker of a run, unless a keeper holds that very run."""
        keeper = self._equipment.runs.keeper_identity(name, run)
        if keeper is None or not same(keeper):
            self._tasks.begin(self._sweep(f"GPUWARD_RUN={self._equipment.instance}:{name}#{run}"))

    async def _sweep(self, marker: str) -> None:
        await asyncio.to_thread(sweep, marker, None)
        self._equipment.sampler.request()

    def tracks(self) -> Tracks:
        """What tells the processes of living runs."""
        return Tracks(
            sessions={handle.live.main_pid: name for name, handle in self.handles.items() if handle.live.main_pid},
            keepers={handle.live.keeper_pid: name for name, handle in self.handles.items() if handle.live.keeper_pid},
            markers={handle.marker.encode(): name for name, handle in self.handles.items()},
            mark=f"GPUWARD_RUN={self._equipment.instance}:".encode(),
        )

    def close(self) -> None:
        """Let go of every run; they go on."""
        for handle in self.handles.values():
            self._watching.stop(handle)
            handle.live.close()
        self._tasks.cancel()

    def _spawn(self, worker: Worker, pool: Pool, plan: Launch) -> StartRefused | None:
        try:
            self._equipment.runtime.keep()
            spec = run_spec(self._equipment, worker, pool, plan)
            spawned = self._equipment.runs.start(spec)
        except StillRunning as error:
            return StartRefused(worker.run, f"waits for its earlier run to be gone: {error}")
        except OSError as error:
            return StartRefused(worker.run, f"cannot start a keeper: {error.strerror}; tries again", kind="spawn")
        self._hold(worker, spec.marker, plan.readiness).live.follow(spawned)
        prune_logs(self._equipment, worker)
        return None

    def _hold(self, worker: Worker, marker: str, readiness: Readiness | None) -> Handle:
        name, run = worker.name, worker.run
        if not self._reads_ahead:
            self._reads_ahead = True
            self._tasks.begin(self._read_ahead())
            self._tasks.begin(
                self._sweeping.look_around(lambda: {name: one.live for name, one in self.handles.items()})
            )
        live = LiveRun(
            self._equipment.runs,
            name,
            run,
            on_started=lambda: self._started(name, run),
            on_main_ended=lambda: self._main_ended(name, run),
            on_ended=lambda: self._keeper_ended(name, run),
        )
        started_s = worker.started_s if worker.started_s is not None else time.monotonic()
        handle = Handle(
            live=live, marker=marker, readiness=readiness, started_s=started_s, reading=self._reading(name, run)
        )
        self.handles[name] = handle
        return handle

    async def _await_keeper(self, worker: Worker, pool: Pool) -> None:
        """The worker's lock tells whether a keeper lives; one that has just been spawned may not have named itself."""
        runs = self._equipment.runs
        until_s = time.monotonic() + ANNOUNCED_WITHIN_S
        keeper = runs.keeper_identity(worker.name, worker.run)
        while keeper is None and runs.is_kept(worker.name) and time.monotonic() < until_s:
            await asyncio.sleep(0.01)
            keeper = runs.keeper_identity(worker.name, worker.run)
        if keeper is None:
            await self._after_no_keeper(worker)
        else:
            self._take_over(worker, pool, keeper)

    def _take_over(self, worker: Worker, pool: Pool, keeper: Identity) -> None:
        handle = self._hold(worker, known_marker(self._equipment, worker), self._readiness(worker, pool))
        if not handle.live.adopt(keeper):
            del self.handles[worker.name]
            self._tasks.begin(self._examine(self._dead(worker, handle.marker, None)))
            return
        now = self._reports.worker(worker.name) or worker
        if now.phase is Phase.STOPPING:
            (self.kill if now.killed else self.terminate)(worker.name)
        elif now.phase is Phase.STARTING:
            self._started(worker.name, worker.run)
        else:
            self._watching.until_hung(handle)

    async def _after_no_keeper(self, worker: Worker) -> None:
        """No keeper was ever named: the daemon ended between the decision and the start, or the records are gone."""
        dead = self._dead(worker, known_marker(self._equipment, worker), None)
        findings = await self._found(dead)
        # a keeper that nobody knew of may have ended meanwhile
        told = self._equipment.runs.ending(worker.name, worker.run) is not None
        if findings.ending.descendants_killed or told:
            self._reports.ended(findings)
        else:
            self._reports.submit(
                worker.name, StartRefused(worker.run, "an earlier daemon ended before it started this")
            )

    def _readiness(self, worker: Worker, pool: Pool) -> Readiness | None:
        try:
            return planned(self._equipment, worker, pool).readiness
        except CannotLaunch:
            return None

    def _started(self, name: str, run: int) -> None:
        handle = self.handles.get(name)
        if handle is not None and handle.live.run == run:
            self._watching.until_ready(handle)

    def _main_ended(self, name: str, run: int) -> None:
        """A dead main process serves nobody, whatever becomes of its keeper: told, unless the run ends at once."""
        handle, worker = self.handles.get(name), self._reports.worker(name)
        if handle is None or handle.live.run != run:
            return
        self._watching.stop(handle)
        handle.died_unasked = worker is not None and worker.phase in {Phase.STARTING, Phase.READY}
        asyncio.get_running_loop().call_later(LINGERS_AFTER_S, self._look_at, handle)

    def _look_at(self, handle: Handle) -> None:
        if self.handles.get(handle.live.worker) is handle:
            self._tasks.begin(self._sweeping.look_at(handle.live, kill=False))

    def _keeper_ended(self, name: str, run: int) -> None:
        handle = self.handles.get(name)
        if handle is None or handle.live.run != run:
            return
        self._watching.stop(handle)
        del self.handles[name]
        handle.live.close()
        worker = self._reports.worker(name)
        if worker is not None:
            dead = self._dead(worker, handle.marker, handle.live.main, handle.reading)
            if handle.live.keeper_pid is not None:
                dead = replace(dead, keeper_code=self._equipment.reaper.code(handle.live.keeper_pid))
            if handle.died_unasked:
                dead = replace(dead, commanded=False, stopped_at=None)
            self._tasks.begin(self._examine(dead))

    async def _examine(self, dead: DeadRun) -> None:
        self._reports.ended(await self._found(dead))

    async def _found(self, dead: DeadRun) -> Findings:
        """How and why a run ended; what its GPUs tell while its log is read counts."""
        runs = self._equipment.runs
        lost = runs.ending(dead.worker, dead.run) is None and bool(dead.marker)
        swept = await self._sweeping.sweep(dead) if lost else 0
        examined = await asyncio.to_thread(examine, runs, dead, swept)
        return judged(examined, self._reports.moments(dead, examined.ending.at))

    def _reading(self, name: str, run: int) -> LogReading:
        settings = self._equipment.settings
        own = own_signatures(settings.signatures)
        return LogReading(self._equipment.log_path(name, run), own, settings.limits.log_max_bytes)

    async def _read_ahead(self) -> None:
        """Read what runs print in plenty while they print it, one after the other, never on the loop's thread."""
        while True:
            await asyncio.sleep(READ_EVERY_S)
            for name in tuple(self.handles):
                handle = self.handles.get(name)
                if handle is not None and handle.reading.behind():
                    await asyncio.to_thread(handle.reading.catch_up)

    def _dead(self, worker: Worker, marker: str, main: Identity | None, reading: LogReading | None = None) -> DeadRun:
        ending = worker.ending
        hang = ending.hang if ending is not None else ""
        return DeadRun(
            worker=worker.name,
            run=worker.run,
            marker=marker,
            main=main or self._equipment.runs.main_identity(worker.name, worker.run),
            phase="starting" if worker.ready_since_s is None else "ready",
            commanded=not hang and (worker.goal is Goal.DOWN or (ending is not None and ending.then != "judge")),
            start_timed_out=ending is not None and ending.kind == "start-timeout",
            unready=ending.why if ending is not None and ending.kind == "start-timeout" else "",
            hung=hang,
            ending=ending,
            log=reading or self._reading(worker.name, worker.run),
            stopped_at=wall_time(worker.since_s) if worker.phase is Phase.STOPPING and ending is not None else None,
        )
