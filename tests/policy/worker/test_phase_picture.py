"""The picture of a worker's phases in `policy.worker.step` is what its decisions do, no step more and none less."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.policy.fleets import a_snapshot

from gpuward.config.fleet import Pool, RestartPolicy
from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.fleet.step import FleetState, settle
from gpuward.policy.worker import step as under_test
from gpuward.policy.worker.life import (
    BecameReady,
    Condemned,
    DeadlinePassed,
    Drained,
    Event,
    HaltAsked,
    Hung,
    Lingers,
    Phase,
    ProbeMissed,
    RestartAsked,
    RunEnded,
    StartAsked,
    StartRefused,
    StopAsked,
    Worker,
)
from gpuward.policy.worker.step import step

POOLS = (
    Pool(name="m", engine="command", command=("x",), gpus_per_worker=0),
    Pool(name="m", engine="command", command=("x",), gpus_per_worker=0, restart=RestartPolicy(mode="never")),
)
LATER_S = 1e6


def events(worker: Worker) -> Iterator[Event]:
    """All that can happen; a run that was ready has been started, so that its start is not refused any more."""
    run = worker.run
    yield from (StartAsked(), StopAsked(), RestartAsked("restart by command"), HaltAsked(), DeadlinePassed())
    yield from (BecameReady(run), Hung(run, "r"), ProbeMissed(run, "r"), Drained(run, 1), Lingers(run))
    yield from (Condemned(run, "start", "r"), Condemned(run, "stop", "r"))
    if worker.ready_since_s is None:
        yield StartRefused(run, "r")
    ended = LastExit(run=run, cause="crash", code=1, signal=None, at=0.0)
    yield from (RunEnded(run=run, exit=ended, permanent=permanent, reason="r") for permanent in (False, True))


def what_the_fleet_does(worker: Worker, pool: Pool, now_s: float) -> Iterator[Worker]:
    """Starts of who is blocked, stops of who has drained, releases; a fleet that halts starts nobody."""
    state = FleetState(snapshot=a_snapshot(), pools={"m": pool}, halting=worker.phase is not Phase.BLOCKED)
    for known in (worker, replace(worker, avoid=("GPU-0",)), replace(worker, not_before_s=now_s + 1)):
        yield settle(replace(state, workers={worker.name: known}), now_s)[0].workers[worker.name]


def edges() -> dict[str, set[str]]:
    """Every phase that follows on one that can be reached, without asking for the same again."""
    found: dict[str, set[str]] = {phase.value: set() for phase in Phase}
    seen, ahead = set(), [(Worker(name="m/0", pool="m", index=0), pool, 0.0) for pool in POOLS]
    while ahead:
        worker, pool, now_s = ahead.pop()
        ending = worker.ending.then if worker.ending is not None else ""
        began = (worker.ready_since_s is None, worker.killed, worker.halted)
        known = (worker.phase, worker.goal, ending, began, pool.restart.mode)
        if known in seen:
            continue
        seen.add(known)
        now_s += LATER_S
        after = [step(worker, event, pool, now_s)[0] for event in events(worker)]
        for one in (*after, *what_the_fleet_does(worker, pool, now_s)):
            found[worker.phase.value] |= {one.phase.value} - {worker.phase.value}
            ahead.append((one, pool, now_s))
    return found


def test_the_picture_of_the_phases_is_what_the_decisions_do() -> None:
    drawn = {}
    for line in (under_test.__doc__ or "").splitlines():
        phase, arrow, to = line.partition("->")
        if arrow:
            drawn[phase.strip()] = {word.strip() for word in to.split(",")}

    assert drawn == edges(), "\n".join(f"    {phase:9} -> {', '.join(sorted(to))}" for phase, to in edges().items())
