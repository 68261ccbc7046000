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

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal, TypeAlias

from gpuward.config.fleet import Pool
from gpuward.policy.restart import GiveUp, after_failure

DRAIN_LIMIT_S = 300.0
"""A worker that waits for its dependents to stop goes ahead after this long."""

REFUSED_PAUSE_S = 1.0
"""A start that was refused is tried again after this."""

MOVED_PAUSE_S = 0.05
"""A worker that moves to other ports tries again after this."""

KILL_WAIT_S = 10.0
"""After SIGKILL of the tree: how long until the keeper itself is killed and the rest hunted by marker."""


class Phase(StrEnum):
    """Where a worker is."""

    STOPPED = "stopped"
    BLOCKED = "blocked"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    RELEASING = "releasing"
    BACKOFF = "backoff"
    FAILED = "failed"


ALIVE = frozenset({Phase.STARTING, Phase.READY, Phase.DRAINING, Phase.STOPPING})
"""Phases in which a run exists."""


class Goal(StrEnum):
    """What the operator wants."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class LastExit:
    """How a run ended; ``at`` is wall time in seconds since the epoch."""

    run: int
    cause: str
    code: int | None
    signal: int | None
    at: float
    evidence: tuple[str, ...] = ()


Next: TypeAlias = Literal["stop", "start", "fail", "halt"]
"""What follows once the run that is being stopped has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Everything that is known and must survive of one worker; times are monotonic seconds.

    ``port`` is the one that it serves on, ``port_block`` the first of those that are its own.
    ``device_uuids`` is the set for the next run, ``run_uuids`` that of the run that lives (or lived last).
    ``halted``: stopped by the daemon's own stop, to be started again with it. ``removed``: goes when stopped.
    """

    name: str
    pool: str
    index: int
    goal: Goal = Goal.DOWN
    phase: Phase = Phase.STOPPED
    reason: str = "never started"
    since_s: float = 0.0
    deadline_s: float | None = None
    run: int = 0
    device_uuids: tuple[str, ...] = ()
    run_uuids: tuple[str, ...] = ()
    port: int | None = None
    port_block: int | None = None
    started_s: float | None = None
    ready_since_s: float | None = None
    ended_s: float | None = None
    not_before_s: float = 0.0
    failures: tuple[float, ...] = ()
    consecutive: int = 0
    restarts: int = 0
    then: Next | None = None
    killed: bool = False
    halted: bool = False
    removed: bool = False
    last_exit: LastExit | None = None

    @property
    def alive(self) -> bool:
        """Whether a run exists."""
        return self.phase in ALIVE


@dataclass(frozen=True, slots=True)
class StartAsked:
    """The operator wants it up; counters begin anew."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The operator wants it down; final until the next command."""

    reason: str = "stopped by command"


@dataclass(frozen=True, slots=True)
class RestartAsked:
    """Stop what runs and start again; never counts as a failure."""

    reason: str


@dataclass(frozen=True, slots=True)
class HaltAsked:
    """The daemon stops; the goal stays."""


@dataclass(frozen=True, slots=True)
class BecameReady:
    """Readiness was proved for ``run``."""

    run: int


@dataclass(frozen=True, slots=True)
class ProbeMissed:
    """Not ready yet; ``reason`` names what is missing."""

    run: int
    reason: str


@dataclass(frozen=True, slots=True)
class StartRefused:
    """The run was not started because of a condition that may pass (a held lease, a taken port).

    ``ports`` is another block and the port in it, where the worker may move there; it then tries again at once.
    """

    run: int
    reason: str
    ports: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """The run's tree is gone, to the last process. ``permanent``: starting again cannot help."""

    run: int
    exit: LastExit
    permanent: bool
    reason: str
    jitter: float = 0.0


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The worker's deadline lies in the past."""


Event: TypeAlias = (
    StartAsked
    | StopAsked
    | RestartAsked
    | HaltAsked
    | BecameReady
    | ProbeMissed
    | StartRefused
    | RunEnded
    | DeadlinePassed
)


@dataclass(frozen=True, slots=True)
class StartRun:
    """Start run ``run`` on the worker's device set."""

    worker: str
    run: int


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM (and SIGCONT) to the main process."""

    worker: str


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL to the main process; the keeper then kills the rest of the tree."""

    worker: str


@dataclass(frozen=True, slots=True)
class KillKeeper:
    """SIGKILL to the keeper, and to whatever is left of its tree."""

    worker: str


@dataclass(frozen=True, slots=True)
class TakeSample:
    """Sample the GPUs at once, not at the next interval."""


@dataclass(frozen=True, slots=True)
class Forget:
    """The worker is no longer part of the fleet: drop its records."""

    worker: str


Effect: TypeAlias = StartRun | Terminate | Kill | KillKeeper | TakeSample | Forget
Step: TypeAlias = tuple[Worker, tuple[Effect, ...]]


def enter(worker: Worker, phase: Phase, reason: str, now_s: float, deadline_s: float | None = None) -> Worker:
    """Put the worker into a phase; ``since_s`` moves only when the phase does."""
    since_s = worker.since_s if phase is worker.phase else now_s
    return replace(worker, phase=phase, reason=reason, since_s=since_s, deadline_s=deadline_s)


def begin_run(worker: Worker, pool: Pool, now_s: float) -> Step:
    """Start the next run; the caller has checked that it may."""
    worker = replace(
        worker,
        run=worker.run + 1,
        run_uuids=worker.device_uuids,
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
    reason = f"{worker.reason}; SIGTERM sent, SIGKILL follows after {pool.stop_timeout_s:g} s"
    stopping = enter(worker, Phase.STOPPING, reason, now_s, now_s + pool.stop_timeout_s)
    return stopping, (Terminate(worker.name),)


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
        case HaltAsked():
            halted = replace(worker, halted=worker.goal is Goal.UP and worker.phase is not Phase.FAILED)
            return _wind_down(halted, "halt", "the daemon stops", now_s)
        case BecameReady(run=run):
            return _became_ready(worker, run, now_s)
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
    fresh = replace(worker, goal=Goal.UP, halted=False, failures=(), consecutive=0, not_before_s=now_s)
    if worker.phase in {Phase.STARTING, Phase.READY}:
        return fresh, ()
    if worker.phase in {Phase.DRAINING, Phase.STOPPING}:
        return replace(fresh, then="start"), ()
    if worker.phase is Phase.RELEASING:
        return fresh, ()
    return enter(fresh, Phase.BLOCKED, "start asked", now_s), (TakeSample(),)


def _restart_asked(worker: Worker, reason: str, now_s: float) -> Step:
    fresh = replace(worker, goal=Goal.UP, halted=False, failures=(), consecutive=0, not_before_s=now_s)
    if not worker.alive:
        return _start_asked(worker, now_s)
    if worker.phase is Phase.STOPPING:
        return replace(fresh, then="start"), ()
    return _wind_down(fresh, "start", reason, now_s)


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
    return enter(replace(worker, ready_since_s=now_s), Phase.READY, f"ready after {took_s:.1f} s", now_s), ()


def _start_refused(worker: Worker, event: StartRefused, now_s: float) -> Step:
    if worker.run != event.run or not worker.alive:
        return worker, ()
    if worker.phase is not Phase.STARTING:
        return enter(replace(worker, then=None), Phase.STOPPED, worker.reason, now_s), ()
    blocked = enter(worker, Phase.BLOCKED, event.reason, now_s)
    if event.ports is None:
        return replace(blocked, not_before_s=now_s + REFUSED_PAUSE_S), ()
    return replace(blocked, port_block=event.ports[0], port=event.ports[1], not_before_s=now_s + MOVED_PAUSE_S), ()


def _run_ended(worker: Worker, event: RunEnded, pool: Pool, now_s: float) -> Step:
    if worker.run != event.run or not worker.alive:
        return worker, ()
    ended = replace(worker, last_exit=event.exit, ended_s=now_s, then=None, killed=False)
    why = worker.reason.split(";")[0]
    if worker.then in {"stop", "halt"} or worker.goal is Goal.DOWN:
        return _rest(ended, Phase.STOPPED, why, now_s)
    if worker.then == "start":
        again = replace(ended, restarts=worker.restarts + 1, not_before_s=now_s)
        return enter(again, Phase.RELEASING, why, now_s), (TakeSample(),)
    return _unasked_end(ended, event, pool, now_s)


def _unasked_end(ended: Worker, event: RunEnded, pool: Pool, now_s: float) -> Step:
    if event.permanent:
        return _rest(ended, Phase.FAILED, event.reason, now_s)
    if pool.restart.mode == "never":
        return _rest(ended, Phase.STOPPED, f"{event.reason}; restart mode is never", now_s)
    ready_for_s = now_s - ended.ready_since_s if ended.ready_since_s is not None else 0.0
    verdict = after_failure(
        pool.restart,
        failures=ended.failures,
        consecutive=ended.consecutive,
        ready_for_s=ready_for_s,
        now_s=now_s,
        jitter=event.jitter,
    )
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
    return enter(again, Phase.RELEASING, reason, now_s), (TakeSample(),)


def _rest(worker: Worker, phase: Phase, reason: str, now_s: float) -> Step:
    """Come to rest: nothing of the run is left, and nothing is going to start."""
    return enter(replace(worker, ready_since_s=None), phase, reason, now_s), ()


def _deadline_passed(worker: Worker, pool: Pool, now_s: float) -> Step:
    match worker.phase:
        case Phase.STARTING:
            reason = f"not ready within start-timeout-s = {pool.start_timeout_s:g} s"
            return begin_stop(replace(worker, reason=reason, then="fail"), pool, now_s)
        case Phase.DRAINING:
            reason = f"{worker.reason}; waited {DRAIN_LIMIT_S:g} s for its dependents"
            return begin_stop(replace(worker, reason=reason), pool, now_s)
        case Phase.STOPPING if not worker.killed:
            reason = f"still alive {pool.stop_timeout_s:g} s after SIGTERM: SIGKILL sent to the whole tree"
            killed = enter(replace(worker, killed=True), Phase.STOPPING, reason, now_s, now_s + KILL_WAIT_S)
            return killed, (Kill(worker.name),)
        case Phase.STOPPING:
            reason = (
                f"processes outlive SIGKILL since {now_s - worker.since_s:.0f} s (uninterruptible in a driver call?)"
            )
            return enter(worker, Phase.STOPPING, reason, now_s, now_s + KILL_WAIT_S), (KillKeeper(worker.name),)
        case _:
            return replace(worker, deadline_s=None), ()
