"""What a new daemon makes of what an earlier one left: records of workers, and directories of runs. Pure.

A keeper that lives proves its run, whatever the records say; `running` then takes the runs over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from gpuward.config.drain import grace_s
from gpuward.config.fleet import Pool
from gpuward.policy.reasons import Ending
from gpuward.policy.worker.life import Goal, Phase, StartAsked, StopAsked, Worker
from gpuward.policy.worker.phases import enter, of_this_version
from gpuward.policy.worker.step import step

LOST = "stopped by command; its record was lost"

PROBE_AGAIN_S = 30.0
"""A start whose deadline passed while no daemon ran gets this long to prove that it became ready meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRun:
    """A run as its directory tells it. ``kept``: its keeper lives. ``pool`` is what it was started from.

    ``pool`` is None and ``definition`` empty where they cannot be read; ``started_s`` is monotonic.
    """

    worker: str
    run: int
    kept: bool
    pool: Pool | None
    definition: str
    gpu_uuids: tuple[str, ...]
    port: int | None
    started_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What the operator is to know of one worker's adoption."""

    kind: str
    worker: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """The state to go on with. ``pools`` has those of the fleet and what stands in for pools that left it."""

    workers: Mapping[str, Worker]
    pools: Mapping[str, Pool]
    notes: tuple[Note, ...]


def take_over(
    fleet: Mapping[str, Pool],
    recorded: Mapping[str, Worker],
    found: Iterable[FoundRun],
    goals: Mapping[str, Goal],
    now_s: float,
) -> Takeover:
    """Put together what records and run directories tell.

    Workers that are not in the fleet are taken over too: what runs is supervised until it has been stopped in order.
    ``goals``: what the operator wants, which holds whatever a record says: that may not have been written any more.
    """
    runs = {run.worker: run for run in found}
    workers: dict[str, Worker] = {}
    pools = dict(fleet)
    notes: list[Note] = []
    down = {name for name, goal in goals.items() if goal is Goal.DOWN}
    for name in sorted({*recorded, *runs, *down}, key=_by_pool_and_index):
        worker, run = recorded.get(name), runs.get(name)
        pool_name = name.rpartition("/")[0]
        started_as = run.pool if run is not None else None
        pool = pools.setdefault(pool_name, started_as or Pool(name=pool_name))
        if run is not None and worker is not None and worker.run == run.run and not worker.definition:
            worker = replace(worker, definition=run.definition)  # a record of a version that had none
        if run is not None and (worker is None or (run.kept and (worker.run != run.run or not worker.alive))):
            worker = _from_its_run(worker, run, goals.get(name, Goal.UP), pool, now_s)
            notes.append(Note(kind="reconstructed", worker=name, reason=worker.reason))
        if worker is None:
            worker = _stopped_without_a_record(name)
        workers[name] = _with_goal(worker, goals.get(name, worker.goal), now_s)
    return Takeover(workers=workers, pools=pools, notes=tuple(notes))


def _stopped_without_a_record(name: str) -> Worker:
    pool, index = _by_pool_and_index(name)
    return Worker(name=name, pool=pool, index=index, goal=Goal.DOWN, reason=LOST, why=LOST)


def _with_goal(worker: Worker, goal: Goal, now_s: float) -> Worker:
    """A worker whose goal was saved when its record could not be: it is on its way there."""
    if goal is worker.goal:
        return worker
    reason = "stopped by command; its record could not be saved then" if goal is Goal.DOWN else "start asked"
    event = StopAsked(reason) if goal is Goal.DOWN else StartAsked()
    return step(worker, event, Pool(name=worker.pool), now_s)[0]


def _from_its_run(worker: Worker | None, run: FoundRun, goal: Goal, pool: Pool, now_s: float) -> Worker:
    """A worker without a record, or with one that is older than the run that lives."""
    pool_name, _, index = run.worker.rpartition("/")
    base = worker or Worker(
        name=run.worker, pool=pool_name, index=int(index), goal=goal, port=run.port, port_block=run.port
    )
    base = replace(base, run=run.run, since_s=now_s, ending=None, killed=False, ready_since_s=None)
    base = replace(base, device_uuids=base.device_uuids or run.gpu_uuids, run_uuids=run.gpu_uuids)
    why = "its record was lost" if worker is None else f"its record is older (run {worker.run})"
    if not run.kept:
        phase = Phase.BLOCKED if goal is Goal.UP else Phase.STOPPED
        return replace(enter(base, phase, f"{why}; run {run.run} ended before", now_s), not_before_s=now_s)
    why = f"{why}; taken over from run {run.run}, which lives"
    down = base.goal is Goal.DOWN
    base = replace(
        base,
        definition=run.definition,
        grace_s=grace_s(run.pool) if run.pool is not None else None,
        started_s=run.started_s,
        ending=Ending(kind="stop", why=why, then="rest") if down else None,
    )
    return enter(base, Phase.DRAINING if down else Phase.STARTING, why, now_s, now_s + pool.start_timeout_s)


def _by_pool_and_index(name: str) -> tuple[str, int]:
    pool, _, index = name.rpartition("/")
    return pool, int(index)


def after_used(workers: Mapping[str, Worker], used: Mapping[str, int]) -> dict[str, Worker]:
    """The workers, so that the next run of each has a number that none of its name has had, whatever was lost."""
    return {
        name: worker if worker.alive else replace(worker, run=max(worker.run, used.get(name, 0)))
        for name, worker in workers.items()
    }


def resumed(worker: Worker, *, same_boot: bool, now_s: float) -> Worker:
    """A worker as it goes on after its record was read.

    Monotonic times of an earlier boot mean nothing, and none of its processes lives: it starts anew if it is wanted up.
    """
    worker = of_this_version(worker)
    if not same_boot:
        worker = _after_a_boot(worker, now_s)
    worker = _not_halting(worker, now_s)
    if worker.phase is Phase.STARTING and worker.deadline_s is not None:
        worker = replace(worker, deadline_s=max(worker.deadline_s, now_s + PROBE_AGAIN_S))
    if worker.halted and worker.goal is Goal.UP and worker.phase is Phase.STOPPED:
        again = replace(worker, halted=False, not_before_s=now_s)
        return enter(again, Phase.BLOCKED, "starts again with the daemon", now_s)
    return worker


def _not_halting(worker: Worker, now_s: float) -> Worker:
    """The earlier daemon was killed while it stopped its workers; this one does not stop."""
    if worker.ending is None or worker.ending.kind != "halt":
        return worker
    if worker.phase is Phase.DRAINING and worker.ready_since_s is not None:
        why = "goes on: the daemon that was to stop it was killed first"
        return enter(replace(worker, ending=None, halted=False), Phase.READY, why, now_s)
    return replace(worker, ending=replace(worker.ending, then="start"), halted=False)


def _after_a_boot(worker: Worker, now_s: float) -> Worker:
    fresh = replace(
        worker,
        since_s=now_s,
        deadline_s=None,
        started_s=None,
        ready_since_s=None,
        ended_s=None,
        not_before_s=now_s,
        failures=(),
        consecutive=0,
        waits=(),
        faults=(),
        ending=None,
        killed=False,
        left=(),
    )
    if worker.phase in {Phase.STOPPED, Phase.FAILED}:
        return fresh
    if worker.goal is Goal.DOWN:
        return enter(fresh, Phase.STOPPED, "stopped by command; the host was rebooted meanwhile", now_s)
    return enter(fresh, Phase.BLOCKED, "starts again after a reboot of the host", now_s)
