"""The words of a worker's life: phases, what is known of a worker, events, effects. Records only.

Events are past tense (what happened), effects imperative (what is to be done); `worker` says which follows from which.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.reasons import By, Ending, EndingKind, Wait, WaitKind
from gpuward.policy.worker.lingering import Left


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
class LadderStep:
    """One setting that was lowered after a run ran out of GPU memory; ``enforce-eager`` goes from 0 to 1."""

    key: Literal["gpu-memory-utilization", "max-num-seqs", "max-num-batched-tokens", "enforce-eager", "max-model-len"]
    before: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Everything that is known and must survive of one worker; times are monotonic seconds.

    ``port`` is the one that it serves on, ``port_block`` the first of those that are its own.
    ``device_uuids`` is the set for the next run, ``run_uuids`` that of the run that lives (or lived last).
    ``definition`` is the digest of what that run was started with (`reload.definition`), empty where it is not known;
    ``proved`` that of the run which became ready last; ``grace_s`` what the run was to have from SIGTERM to SIGKILL by
    its pool at its start, None where that is not known.
    ``waits`` and ``faults``: when runs ended that found their condition missing, or on a fault of these GPUs;
    ``avoid``: GPUs that it is to leave. ``steps``: what its runs have less of than its pool says (`ladder`).
    ``refusals``: starts in a row that were refused, none of them a run.
    ``left``: processes of its run that SIGKILL has not ended.
    ``halted``: stopped by the daemon's own stop, to be started again with it. ``removed``: goes when stopped.
    ``ending``: why its run is being ended, ``wait``: what it waits for where it is, ``why``: how it came there;
    ``reason`` is what people are told of these (`phases.sentence`), ``by`` who brought it there, None where nobody did.
    ``leaves_as`` and ``leaves_by``: the kind of its ending, and who asked, where it is ``removed``. ``then`` is of
    records of earlier versions.
    """

    name: str
    pool: str
    index: int
    goal: Goal = Goal.DOWN
    phase: Phase = Phase.STOPPED
    reason: str = "never started"
    why: str = ""
    by: By | None = None
    wait: Wait | None = None
    ending: Ending | None = None
    since_s: float = 0.0
    deadline_s: float | None = None
    run: int = 0
    device_uuids: tuple[str, ...] = ()
    run_uuids: tuple[str, ...] = ()
    definition: str = ""
    proved: str = ""
    grace_s: float | None = None
    port: int | None = None
    port_block: int | None = None
    started_s: float | None = None
    ready_since_s: float | None = None
    ended_s: float | None = None
    not_before_s: float = 0.0
    failures: tuple[float, ...] = ()
    consecutive: int = 0
    restarts: int = 0
    waits: tuple[float, ...] = ()
    faults: tuple[float, ...] = ()
    avoid: tuple[str, ...] = ()
    steps: tuple[LadderStep, ...] = ()
    refusals: int = 0
    shunned_blocks: tuple[int, ...] = ()
    then: Literal["stop", "start", "fail", "hang", "halt"] | None = None
    killed: bool = False
    halted: bool = False
    removed: bool = False
    leaves_as: EndingKind = "left-fleet"
    leaves_by: By | None = None
    last_exit: LastExit | None = None
    left: tuple[Left, ...] = ()

    @property
    def alive(self) -> bool:
        """Whether a run exists."""
        return self.phase in ALIVE


@dataclass(frozen=True, slots=True)
class StartAsked:
    """The operator wants it up; counters begin anew."""

    by: By | None = None


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The operator wants it down; final until the next command."""

    reason: str = "stopped by command"
    kind: EndingKind = "stop"
    by: By | None = None


@dataclass(frozen=True, slots=True)
class RestartAsked:
    """Stop what runs and start again; never counts as a failure."""

    reason: str
    kind: EndingKind = "restart"
    by: By | None = None


@dataclass(frozen=True, slots=True)
class Condemned:
    """A run that works must end: it breaks its limits, or its GPU is out of order. Counts as a failure.

    ``then``: start again, or stay stopped until the next command; the goal stays as it is. ``again``: it was so for the
    same breach before, and has been told.
    """

    run: int
    then: Literal["start", "stop"]
    reason: str
    kind: EndingKind = "breach"
    again: bool = False


@dataclass(frozen=True, slots=True)
class HaltAsked:
    """The daemon stops; the goal stays."""


@dataclass(frozen=True, slots=True)
class BecameReady:
    """Readiness was proved for ``run``."""

    run: int


@dataclass(frozen=True, slots=True)
class Hung:
    """A ready run makes no progress any more; ``reason`` tells what was seen."""

    run: int
    reason: str


@dataclass(frozen=True, slots=True)
class Drained:
    """A run that was sent SIGTERM still works on so many requests."""

    run: int
    requests: int


@dataclass(frozen=True, slots=True)
class ProbeMissed:
    """Not ready yet; ``reason`` names what is missing."""

    run: int
    reason: str


@dataclass(frozen=True, slots=True)
class StartRefused:
    """The run was not started because of a condition that may pass (a held lease, a taken port).

    ``ports`` is another block and the port in it, where the worker may move there; it then tries again at once.
    ``spent``: the run has left a log, so that its number must not come again.
    """

    run: int
    reason: str
    ports: tuple[int, int] | None = None
    kind: WaitKind = "earlier-run"
    spent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """The run's tree is gone, to the last process. ``permanent``: starting again cannot help.

    ``hint``: what would, empty where nobody knows; ``offer_tokens``: the longest context that would fit. ``ended_s``
    is the monotonic time of the end where the keeper recorded it; the news may be much younger.
    """

    run: int
    exit: LastExit
    permanent: bool
    reason: str
    hint: str = ""
    offer_tokens: int | None = None
    jitter: float = 0.0
    ended_s: float | None = None


@dataclass(frozen=True, slots=True)
class Lingers:
    """The main process of ``run``, or its keeper, is dead, and the run has not ended: ``left`` are who lives."""

    run: int
    left: tuple[Left, ...] = ()


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The worker's deadline lies in the past."""


Event: TypeAlias = (
    StartAsked
    | StopAsked
    | RestartAsked
    | Condemned
    | HaltAsked
    | BecameReady
    | Hung
    | ProbeMissed
    | Drained
    | StartRefused
    | RunEnded
    | Lingers
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
class KillRest:
    """SIGCONT to the keeper and SIGKILL to what is left of its tree; to the keeper itself where nothing is."""

    worker: str


@dataclass(frozen=True, slots=True)
class TakeSample:
    """Sample the GPUs at once, not at the next interval."""


@dataclass(frozen=True, slots=True)
class Forget:
    """The worker is no longer part of the fleet: drop its records."""

    worker: str


@dataclass(frozen=True, slots=True)
class KillOrphan:
    """SIGKILL to whatever carries the marker of a run that has ended, if no keeper holds that run."""

    worker: str
    run: int


@dataclass(frozen=True, slots=True)
class Note:
    """Tell the operator what was decided about a worker that is not a change of its phase."""

    worker: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Adapted:
    """After ``run`` the worker has less of one setting: to be told, and kept with the record of that run."""

    worker: str
    run: int
    step: LadderStep


Effect: TypeAlias = StartRun | Terminate | Kill | KillRest | TakeSample | Forget | KillOrphan | Note | Adapted
Step: TypeAlias = tuple[Worker, tuple[Effect, ...]]
