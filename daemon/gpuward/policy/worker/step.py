"""One worker's life: phases, events, and what follows. Every event is legal in every phase.

    stopped   -> blocked
    blocked   -> starting, stopped, failed
    starting  -> ready, draining, stopping, releasing, blocked, stopped, failed
    ready     -> draining, stopping, releasing, stopped, failed
    draining  -> stopping, releasing, blocked, stopped
    stopping  -> releasing, blocked, stopped, failed
    releasing -> blocked, backoff, stopped
    backoff   -> blocked, stopped
    failed    -> blocked, stopped

Draining waits for others before the SIGTERM, stopping begins with it. From either to blocked goes who was to be
restarted and turns out never to have been started. A test keeps the picture true.

`fleet` says when a blocked worker may start and when a releasing one is free; this module says everything else.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from gpuward.config.drain import grace_s
from gpuward.config.fleet import Pool
from gpuward.policy.placement.ports import served_port
from gpuward.policy.reasons import Ending, Wait, named
from gpuward.policy.worker.definition import definition
from gpuward.policy.worker.grace import grace_of
from gpuward.policy.worker.life import (
    BecameReady,
    Condemned,
    DeadlinePassed,
    Drained,
    Event,
    Goal,
    HaltAsked,
    Hung,
    Kill,
    KillRest,
    Lingers,
    Note,
    Phase,
    ProbeMissed,
    RestartAsked,
    RunEnded,
    StartAsked,
    StartRefused,
    StartRun,
    Step,
    StopAsked,
    TakeSample,
    Terminate,
    Worker,
)
from gpuward.policy.worker.lingering import said
from gpuward.policy.worker.phases import ending_as, enter, onward, waiting
from gpuward.policy.worker.restart import GiveUp, after_failure
from gpuward.policy.worker.run_over import over

DRAIN_LIMIT_S = 300.0
"""A worker that waits to be stopped, for its dependents or for a neighbour that starts, goes ahead after this long."""

KILL_WAIT_S = 10.0
"""Pause between two looks at what SIGKILL has not ended."""

LEFT_ALONE_S = 30.0
"""A daemon that stops waits so long for what SIGKILL does not end."""


def begin_run(worker: Worker, pool: Pool, now_s: float) -> Step:
    """Start the next run; the caller has checked that it may.

    The budget is one of starts: the failure that it follows counts from now on, however late the start comes.
    """
    port = worker.port if worker.port_block is None else served_port(pool, worker.index, worker.port_block)
    worker = replace(
        worker,
        port=port,
        run=worker.run + 1,
        run_uuids=worker.device_uuids,
        definition=definition(pool),
        grace_s=grace_s(pool),
        started_s=now_s,
        ready_since_s=None,
        ending=None,
        killed=False,
        failures=(*worker.failures[:-1], now_s) if worker.failures else (),
    )
    devices = f" on {len(worker.run_uuids)} GPU{'s' * (len(worker.run_uuids) != 1)}" if worker.run_uuids else ""
    started = enter(worker, Phase.STARTING, f"run {worker.run} starts{devices}", now_s, now_s + pool.start_timeout_s)
    return started, (StartRun(worker.name, worker.run),)


def begin_stop(worker: Worker, pool: Pool, now_s: float) -> Step:
    """Send SIGTERM and give the grace time."""
    has_s = grace_of(worker, pool)
    late = worker.ending.waited_s if worker.ending is not None else None
    waited = f"waited {late:g} s; " if late is not None else ""
    wait = Wait(kind="grace", text=f"{waited}SIGTERM sent, SIGKILL follows after {has_s:g} s")
    stopping = onward(worker, Phase.STOPPING, now_s, now_s + has_s, wait=wait)
    return stopping, (Terminate(worker.name),)


def step(worker: Worker, event: Event, pool: Pool, now_s: float) -> Step:
    """Answer one event."""
    match event:
        case StartAsked(by=by):
            return _start_asked(
                worker, Ending(kind="restart", why=named("start asked", by), then="start", by=by), now_s
            )
        case StopAsked(reason=why, kind=kind, by=by):
            down = replace(worker, goal=Goal.DOWN, halted=False)
            return _wind_down(down, Ending(kind=kind, why=named(why, by), then="rest", by=by), now_s)
        case RestartAsked(reason=why, kind=kind, by=by):
            return _restart_asked(worker, Ending(kind=kind, why=named(why, by), then="start", by=by), now_s)
        case Condemned():
            return _condemned(worker, event, pool, now_s)
        case HaltAsked():
            halted = replace(worker, halted=worker.goal is Goal.UP and worker.phase is not Phase.FAILED)
            return _wind_down(halted, Ending(kind="halt", why="the daemon stops", then="rest"), now_s)
        case BecameReady(run=run):
            return _became_ready(worker, run, now_s)
        case Hung(run=run, reason=reason):
            return _hung(worker, run, reason, now_s)
        case ProbeMissed() | Drained():
            return _heard(worker, event, pool), ()
        case RunEnded() | StartRefused():
            return over(worker, event, pool, now_s)
        case Lingers():
            return _lingers(worker, event, now_s)
        case DeadlinePassed():
            return _deadline_passed(worker, pool, now_s)


def _heard(worker: Worker, event: ProbeMissed | Drained, pool: Pool) -> Worker:
    """Tell what a start still misses, or how many requests a worker that ends has still to finish."""
    if worker.run != event.run or worker.killed:
        return worker
    if isinstance(event, ProbeMissed):
        return waiting(worker, Wait(kind="probe", text=event.reason)) if worker.phase is Phase.STARTING else worker
    if worker.phase is not Phase.STOPPING:
        return worker
    kept = f"draining, {event.requests} request{'s' * (event.requests != 1)} running"
    return waiting(
        worker, Wait(kind="grace", text=f"{kept}; SIGKILL follows {grace_of(worker, pool):g} s after SIGTERM")
    )


def _start_asked(worker: Worker, ending: Ending, now_s: float) -> Step:
    fresh = _anew(worker, now_s)
    if worker.phase in {Phase.STARTING, Phase.READY}:
        return fresh, ()
    if worker.phase in {Phase.DRAINING, Phase.STOPPING}:
        return ending_as(fresh, ending), ()
    if worker.phase is Phase.RELEASING:
        return fresh, ()
    return enter(fresh, Phase.BLOCKED, ending.why, now_s, by=ending.by), (TakeSample(),)


def _anew(worker: Worker, now_s: float) -> Worker:
    """Wanted up by command: what was counted so far counts no more."""
    return replace(
        worker,
        goal=Goal.UP,
        halted=False,
        failures=(),
        consecutive=0,
        waits=(),
        faults=(),
        avoid=(),
        refusals=0,
        not_before_s=now_s,
    )


def _restart_asked(worker: Worker, ending: Ending, now_s: float) -> Step:
    if not worker.alive:
        return _start_asked(worker, replace(ending, why=named("start asked", ending.by)), now_s)
    return _wind_down(_anew(worker, now_s), ending, now_s)


def _condemned(worker: Worker, event: Condemned, pool: Pool, now_s: float) -> Step:
    """End a run that nobody has asked to end, in order; who is on the way down already goes on with that.

    Starts after a breach have the budget and the delays of any failure; with the budget spent, what serves is left.
    """
    if worker.run != event.run or worker.phase not in {Phase.STARTING, Phase.READY}:
        return worker, ()
    counted = replace(worker, failures=(*worker.failures, now_s), not_before_s=now_s)
    if event.kind == "breach" and event.then == "start":
        ready_for_s = now_s - worker.ready_since_s if worker.ready_since_s is not None else 0.0
        verdict = after_failure(
            pool.restart,
            failures=worker.failures,
            consecutive=worker.consecutive,
            ready_for_s=ready_for_s,
            now_s=now_s,
            jitter=0.0,
        )
        if isinstance(verdict, GiveUp):
            kept = Note(worker.name, "memory-breach-kept", f"{event.reason}; left running: {verdict.reason}")
            return worker, () if event.again else (kept,)
        counted = replace(
            worker, failures=verdict.failures, consecutive=verdict.consecutive, not_before_s=verdict.not_before_s
        )
    then: Literal["rest", "start"] = "start" if event.then == "start" else "rest"
    return _wind_down(counted, Ending(kind=event.kind, why=event.reason, then=then), now_s)


def _wind_down(worker: Worker, ending: Ending, now_s: float) -> Step:
    """Leave any phase towards stopped; a run that lives is drained first (the fleet knows when that is done).

    Who is on its way down by command stays so when the daemon stops meanwhile.
    """
    halts = ending.kind == "halt"
    if halts and worker.goal is Goal.DOWN and worker.ending is not None:
        return worker, ()
    if worker.phase is Phase.STOPPING:
        return ending_as(worker, ending), ()
    if worker.alive:
        ended = replace(worker, ending=ending)
        return enter(ended, Phase.DRAINING, ending.why, now_s, now_s + DRAIN_LIMIT_S, by=ending.by), ()
    if halts and (worker.phase is Phase.FAILED or worker.goal is Goal.DOWN):
        return worker, ()
    return enter(replace(worker, ending=None), Phase.STOPPED, ending.why, now_s, by=ending.by), ()


def _became_ready(worker: Worker, run: int, now_s: float) -> Step:
    if worker.phase is not Phase.STARTING or worker.run != run:
        return worker, ()
    took_s = now_s - worker.since_s
    return enter(
        replace(worker, ready_since_s=now_s, proved=worker.definition, refusals=0),
        Phase.READY,
        f"ready after {took_s:.1f} s",
        now_s,
    ), ()


def _hung(worker: Worker, run: int, reason: str, now_s: float) -> Step:
    """Kill the whole tree at once: what does not work does not end in order either."""
    if worker.phase is not Phase.READY or worker.run != run:
        return worker, ()
    ending = Ending(kind="hang", why=f"hangs: {reason}", then="judge")
    dying = replace(worker, ending=ending, killed=True)
    return enter(dying, Phase.STOPPING, ending.why, now_s, now_s + KILL_WAIT_S), (Kill(worker.name),)


def _lingers(worker: Worker, event: Lingers, now_s: float) -> Step:
    """A dead main process serves nobody: out of ready at once, and no next run beside what is left of this one."""
    if not worker.alive or worker.run != event.run:
        return worker, ()
    stopping = worker.phase is Phase.STOPPING
    on_its_way = stopping or worker.phase is Phase.DRAINING
    why, by = (worker.why, worker.by) if on_its_way else ("its main process has ended", None)
    wait = Wait(kind="outlives-kill", text=said(event.left, now_s - worker.since_s if stopping else 0.0))
    deadline_s = worker.deadline_s if stopping and worker.killed else now_s + KILL_WAIT_S
    lingering = replace(worker, killed=True, left=event.left)
    return enter(lingering, Phase.STOPPING, why, now_s, deadline_s, wait=wait, by=by), ()


def stays(worker: Worker, now_s: float) -> bool:
    """Whether a run cannot be ended: a daemon that stops leaves it to the next one."""
    return worker.phase is Phase.STOPPING and bool(worker.left) and now_s - worker.since_s >= LEFT_ALONE_S


def _deadline_passed(worker: Worker, pool: Pool, now_s: float) -> Step:
    match worker.phase:
        case Phase.STARTING:
            last = f": last: {worker.wait.text}" if worker.wait is not None and worker.wait.text else ""
            why = f"not ready within start-timeout-s = {pool.start_timeout_s:g} s{last}"
            late = ending_as(worker, Ending(kind="start-timeout", why=why, then="judge"))
            return begin_stop(late, pool, now_s)
        case Phase.DRAINING if worker.ending is not None:
            return begin_stop(replace(worker, ending=replace(worker.ending, waited_s=DRAIN_LIMIT_S)), pool, now_s)
        case Phase.DRAINING:
            return begin_stop(worker, pool, now_s)
        case Phase.STOPPING:
            return _outlived(worker, pool, now_s)
        case Phase.RELEASING:
            return replace(worker, deadline_s=None), (TakeSample(),)
        case _:
            return replace(worker, deadline_s=None), ()


def _outlived(worker: Worker, pool: Pool, now_s: float) -> Step:
    """The time to end has passed: kill the tree, then again whoever is left of it."""
    deadline_s = now_s + KILL_WAIT_S
    if not worker.killed:
        text = f"still alive {grace_of(worker, pool):g} s after SIGTERM: SIGKILL sent to the whole tree"
        worker = replace(worker, killed=True)
        wait, effect = Wait(kind="killed", text=text), Kill(worker.name)
        return onward(worker, Phase.STOPPING, now_s, deadline_s, wait=wait), (effect,)
    text = said(worker.left, now_s - worker.since_s)
    stuck = onward(worker, Phase.STOPPING, now_s, deadline_s, wait=Wait(kind="outlives-kill", text=text))
    return stuck, (KillRest(worker.name),)
