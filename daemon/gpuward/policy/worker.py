r"""One worker's life: phases, events, and what follows. Every event is legal in every phase.

    stopped -> blocked -> starting -> ready
       ^          ^           \         |
       |          |            v        v         (draining: waits for dependents first)
       |          |          stopping  <- draining
       |          |              |
       +----------+- backoff <- releasing -> failed

`fleet` says when a blocked worker may start and when a releasing one is free; this module says everything else.
"""

from __future__ import annotations

from dataclasses import replace

from gpuward.config.fleet import Pool
from gpuward.policy.life import (
    Adapted,
    BecameReady,
    Condemned,
    DeadlinePassed,
    Event,
    Goal,
    HaltAsked,
    Hung,
    Kill,
    KillKeeper,
    Next,
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
from gpuward.policy.ports import served_port
from gpuward.policy.reload import definition
from gpuward.policy.response import after_end
from gpuward.policy.restart import GiveUp

DRAIN_LIMIT_S = 300.0
"""A worker that waits to be stopped, for its dependents or for a neighbour that starts, goes ahead after this long."""

REFUSED_PAUSE_S = 1.0
REFUSED_PAUSE_MAX_S = 30.0
"""A start that was refused is tried again after the first; the pause doubles, up to the second, while it goes on."""

MOVED_PAUSE_S = 0.05
"""A worker that moves to other ports tries again after this."""

LOADING_GRACE_S = 10.0
"""From SIGTERM to SIGKILL at most for a vLLM that still loads: it has no request to finish, and it loses the SIGTERM
(vLLM 0.32.0, measured)."""

KILL_WAIT_S = 10.0
"""After SIGKILL of the tree: how long until the keeper itself is killed and the rest hunted by marker."""


def enter(worker: Worker, phase: Phase, reason: str, now_s: float, deadline_s: float | None = None) -> Worker:
    """Put the worker into a phase; ``since_s`` moves only when the phase does."""
    since_s = worker.since_s if phase is worker.phase else now_s
    return replace(worker, phase=phase, reason=reason, since_s=since_s, deadline_s=deadline_s)


def begin_run(worker: Worker, pool: Pool, now_s: float) -> Step:
    """Start the next run; the caller has checked that it may."""
    port = worker.port if worker.port_block is None else served_port(pool, worker.index, worker.port_block)
    worker = replace(
        worker,
        port=port,
        run=worker.run + 1,
        run_uuids=worker.device_uuids,
        definition=definition(pool),
        started_s=now_s,
        ready_since_s=None,
        then=None,
        killed=False,
    )
    devices = f" on {len(worker.run_uuids)} GPU{'s' * (len(worker.run_uuids) != 1)}" if worker.run_uuids else ""
    started = enter(worker, Phase.STARTING, f"run {worker.run} starts{devices}", now_s, now_s + pool.start_timeout_s)
    return started, (StartRun(worker.name, worker.run),)


def begin_stop(worker: Worker, pool: Pool, now_s: float) -> Step:
    """Send SIGTERM and give the grace time."""
    grace_s = _grace_s(worker, pool)
    reason = f"{worker.reason}; SIGTERM sent, SIGKILL follows after {grace_s:g} s"
    stopping = enter(worker, Phase.STOPPING, reason, now_s, now_s + grace_s)
    return stopping, (Terminate(worker.name),)


def _grace_s(worker: Worker, pool: Pool) -> float:
    loads = worker.ready_since_s is None and pool.engine != "command"
    return min(pool.stop_timeout_s, LOADING_GRACE_S) if loads else pool.stop_timeout_s


def step(worker: Worker, event: Event, pool: Pool, now_s: float) -> Step:
    """Answer one event."""
    match event:
        case StartAsked():
            return _start_asked(worker, now_s)
        case StopAsked(reason=reason):
            down = replace(worker, goal=Goal.DOWN, halted=False)
            return _wind_down(down, "stop", reason, now_s)
        case RestartAsked(reason=reason):
            return _restart_asked(worker, reason, now_s)
        case Condemned():
            return _condemned(worker, event, now_s)
        case HaltAsked():
            halted = replace(worker, halted=worker.goal is Goal.UP and worker.phase is not Phase.FAILED)
            return _wind_down(halted, "halt", "the daemon stops", now_s)
        case BecameReady(run=run):
            return _became_ready(worker, run, now_s)
        case Hung(run=run, reason=reason):
            return _hung(worker, run, reason, now_s)
        case ProbeMissed(run=run, reason=reason):
            current = worker.phase is Phase.STARTING and worker.run == run
            return (replace(worker, reason=reason) if current else worker), ()
        case StartRefused():
            return _start_refused(worker, event, now_s)
        case RunEnded():
            return _run_ended(worker, event, pool, now_s)
        case DeadlinePassed():
            return _deadline_passed(worker, pool, now_s)


def _start_asked(worker: Worker, now_s: float) -> Step:
    fresh = _anew(worker, now_s)
    if worker.phase in {Phase.STARTING, Phase.READY}:
        return fresh, ()
    if worker.phase in {Phase.DRAINING, Phase.STOPPING}:
        return replace(fresh, then="start"), ()
    if worker.phase is Phase.RELEASING:
        return fresh, ()
    return enter(fresh, Phase.BLOCKED, "start asked", now_s), (TakeSample(),)


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


def _restart_asked(worker: Worker, reason: str, now_s: float) -> Step:
    fresh = _anew(worker, now_s)
    if not worker.alive:
        return _start_asked(worker, now_s)
    if worker.phase is Phase.STOPPING:
        return replace(fresh, then="start"), ()
    return _wind_down(fresh, "start", reason, now_s)


def _condemned(worker: Worker, event: Condemned, now_s: float) -> Step:
    """End a run that nobody has asked to end, in order; who is on the way down already goes on with that."""
    if worker.run != event.run or worker.phase not in {Phase.STARTING, Phase.READY}:
        return worker, ()
    counted = replace(worker, failures=(*worker.failures, now_s), not_before_s=now_s)
    return _wind_down(counted, event.then, event.reason, now_s)


def _wind_down(worker: Worker, then: Next, reason: str, now_s: float) -> Step:
    """Leave any phase towards stopped; a run that lives is drained first (the fleet knows when that is done)."""
    if worker.phase is Phase.STOPPING:
        return replace(worker, then=then), ()
    if worker.alive:
        return enter(replace(worker, then=then), Phase.DRAINING, reason, now_s, now_s + DRAIN_LIMIT_S), ()
    if worker.phase is Phase.FAILED and then == "halt":
        return worker, ()
    return enter(replace(worker, then=None), Phase.STOPPED, reason, now_s), ()


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
    dying = replace(worker, then="hang", killed=True)
    return enter(dying, Phase.STOPPING, f"hangs: {reason}", now_s, now_s + KILL_WAIT_S), (Kill(worker.name),)


def _start_refused(worker: Worker, event: StartRefused, now_s: float) -> Step:
    """Give the number of the run back, for there was none; wait longer each time that the refusal repeats."""
    if worker.run != event.run or not worker.alive:
        return worker, ()
    pause_s = min(REFUSED_PAUSE_MAX_S, REFUSED_PAUSE_S * 2.0 ** min(worker.refusals, 62))
    worker = replace(worker, run=worker.run - 1, refusals=worker.refusals + 1)
    if worker.phase is not Phase.STARTING:
        return enter(replace(worker, then=None), Phase.STOPPED, worker.reason, now_s), ()
    if event.ports is None:
        reason = f"{event.reason}; refusal {worker.refusals}, tries again in {pause_s:g} s"
        return replace(enter(worker, Phase.BLOCKED, reason, now_s), not_before_s=now_s + pause_s), ()
    blocked = enter(worker, Phase.BLOCKED, event.reason, now_s)
    return replace(blocked, port_block=event.ports[0], port=event.ports[1], not_before_s=now_s + MOVED_PAUSE_S), ()


def _run_ended(worker: Worker, event: RunEnded, pool: Pool, now_s: float) -> Step:
    if worker.run != event.run or not worker.alive:
        return worker, ()
    ended = replace(worker, last_exit=event.exit, ended_s=now_s, then=None, killed=False, refusals=0)
    why = worker.reason.split(";")[0]
    if worker.then in {"stop", "halt"} or worker.goal is Goal.DOWN:
        return _rest(ended, Phase.STOPPED, why, now_s)
    if worker.then == "start":
        again = replace(ended, restarts=worker.restarts + 1, not_before_s=now_s)
        return enter(again, Phase.RELEASING, why, now_s), (TakeSample(),)
    return _unasked_end(ended, event, pool, now_s)


def _unasked_end(ended: Worker, event: RunEnded, pool: Pool, now_s: float) -> Step:
    if pool.restart.mode == "never" and not event.permanent:
        return _rest(ended, Phase.STOPPED, f"{event.reason}; restart mode is never", now_s)
    steps_before = len(ended.steps)
    ended, verdict = after_end(ended, pool, event, now_s)
    reason = f"{event.reason}; {verdict.reason}"
    if isinstance(verdict, GiveUp):
        return _rest(replace(ended, failures=verdict.failures), Phase.FAILED, reason, now_s)
    again = replace(
        ended,
        failures=verdict.failures,
        consecutive=verdict.consecutive,
        restarts=ended.restarts + 1,
        not_before_s=verdict.not_before_s,
    )
    adapted = (Adapted(ended.name, ended.run, step) for step in ended.steps[steps_before:])
    return enter(again, Phase.RELEASING, reason, now_s), (TakeSample(), *adapted)


def _rest(worker: Worker, phase: Phase, reason: str, now_s: float) -> Step:
    """Come to rest: nothing of the run is left, and nothing is going to start."""
    return enter(replace(worker, ready_since_s=None), phase, reason, now_s), ()


def _deadline_passed(worker: Worker, pool: Pool, now_s: float) -> Step:
    match worker.phase:
        case Phase.STARTING:
            reason = f"not ready within start-timeout-s = {pool.start_timeout_s:g} s"
            return begin_stop(replace(worker, reason=reason, then="fail"), pool, now_s)
        case Phase.DRAINING:
            reason = f"{worker.reason}; waited {DRAIN_LIMIT_S:g} s"
            return begin_stop(replace(worker, reason=reason), pool, now_s)
        case Phase.STOPPING if not worker.killed:
            reason = f"still alive {_grace_s(worker, pool):g} s after SIGTERM: SIGKILL sent to the whole tree"
            killed = enter(replace(worker, killed=True), Phase.STOPPING, reason, now_s, now_s + KILL_WAIT_S)
            return killed, (Kill(worker.name),)
        case Phase.STOPPING:
            reason = (
                f"processes outlive SIGKILL since {now_s - worker.since_s:.0f} s (uninterruptible in a driver call?)"
            )
            return enter(worker, Phase.STOPPING, reason, now_s, now_s + KILL_WAIT_S), (KillKeeper(worker.name),)
        case Phase.RELEASING:
            return replace(worker, deadline_s=None), (TakeSample(),)
        case _:
            return replace(worker, deadline_s=None), ()
