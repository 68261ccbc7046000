"""The shapes of what the daemon answers, for the type checker: one TypedDict per document of `protocol`.

gpuctl imports this under TYPE_CHECKING only: at run time they are plain dicts and cost nothing.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class DaemonLife(TypedDict):
    """One life of the daemon.

    ``notices``: sentences on what an operator has to mend, such as a state file that was set aside or a full disk; each
    stays for as long as it holds.
    """

    pid: int
    version: str
    epoch: int
    uptime_s: float
    notices: NotRequired[list[str]]
    control: dict[str, int]


class FleetSource(TypedDict):
    """Which fleet runs; ``drift``: the file that the daemon was started with says otherwise."""

    revision: int
    source: str | None
    drift: bool
    drift_reason: str | None
    drift_advice: NotRequired[str]


class MemoryUse(TypedDict):
    """What one worker has of one GPU."""

    gpu_uuid: str
    used_bytes: int | None
    claim_bytes: int | None


class LastExit(TypedDict):
    """How a worker's latest ended run ended.

    ``cause``: what was wrong with the run (``commanded``: nothing). ``ended_by``: what gpuward was ending it for, empty
    where it ended by itself: ``stop``, ``restart``, ``roll``, ``reset`` (its ladder is undone), ``definition`` (its
    pool changed), ``move`` (to other GPUs, as the fleet says), ``spare`` (to a spare GPU), ``scale`` (its pool has
    fewer workers), ``left-fleet``, ``halt`` (the daemon's stop), ``start-timeout``, ``hang``, ``breach`` (of its
    memory). Who comes back smaller after it ran out of memory has ended by itself; ``step`` of its `Run` tells what was
    lowered.
    ``by``: the user who asked, ``SIGHUP`` where a signal did, None where gpuward itself did.
    """

    cause: str
    code: int | None
    signal: int | str | None
    at: str
    evidence: list[str]
    reason: NotRequired[str]
    ended_by: NotRequired[str]
    by: NotRequired[str | None]


class LivenessReport(TypedDict):
    """How well a ready worker is watched; ``partly``: not every hang can be proved, ``reason`` says why."""

    state: Literal["watched", "partly", "asleep", "off"]
    reason: str


class Worker(TypedDict):
    """One worker as `gpuctl status` tells it."""

    name: str
    pool: str
    phase: str
    goal: str
    ready: bool
    reason: str
    by: NotRequired[str | None]
    gpus: list[int]
    gpu_uuids: list[str]
    pid: int | None
    keeper_pid: int | None
    run: int | None
    port: int | None
    restarts: int
    adapted: NotRequired[list[str]]
    uptime_s: float | None
    memory: list[MemoryUse]
    warnings: NotRequired[list[str]]
    liveness: NotRequired[LivenessReport | None]
    last_exit: LastExit | None
    next_start_at: str | None


class Foreign(TypedDict):
    """A process on a GPU that is none of ours."""

    pid: int
    name: str
    used_bytes: int | None


class Holder(TypedDict):
    """A process on a GPU; ``orphan``: of a run that has ended or that nobody watches."""

    pid: int
    name: str
    used_bytes: int | None
    kind: Literal["worker", "orphan", "foreign"]
    worker: str | None


class Vitals(TypedDict):
    """How a GPU does; None where the driver does not tell."""

    busy_percent: int | None
    temperature_c: int | None
    power_w: float | None
    throttled_by: list[str] | None
    ecc_uncorrected: int | None
    rows_pending: bool | None
    rows_failed: bool | None
    recovery: str | None
    compute_mode: str | None
    mig: bool | None


class Gpu(TypedDict):
    """One GPU as `gpuctl gpus` tells it; ``closed``: it takes no new worker, ``reason`` names it and says why."""

    index: int
    uuid: str
    name: str
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    memory_free_bytes: int | None
    claimed_bytes: int
    health: str
    reason: str
    closed: NotRequired[bool]
    warnings: NotRequired[list[str]]
    vitals: NotRequired[Vitals]
    settling: NotRequired[bool]
    holders: NotRequired[list[Holder]]
    unattributed_bytes: NotRequired[int | None]
    workers: list[str]
    foreign: list[Foreign]
    stale: bool


class Inventory(TypedDict):
    """Whether the GPU facts are fresh."""

    state: Literal["ok", "stale", "released", "unavailable"]
    reason: str
    sampled_at: NotRequired[str]


class GpuAnswer(TypedDict):
    """Answer to ``gpu``."""

    gpu: Gpu


class Fault(TypedDict):
    """Answer to ``sim``."""

    fault: str
    gpu: int | str | None
    value: float | None


class Status(TypedDict):
    """Answer to ``status``."""

    schema_version: int
    simulated: bool
    daemon: DaemonLife
    fleet: NotRequired[FleetSource]
    inventory: NotRequired[Inventory]
    workers: list[Worker]
    gpus: list[Gpu]


class Remark(TypedDict):
    """A problem or a warning."""

    code: str
    pool: str | None
    message: str


class PlannedWorker(TypedDict):
    """One worker and its device set; ``claim_bytes`` is per GPU."""

    name: str
    pool: str
    gpus: list[int]
    gpu_uuids: list[str]
    claim_bytes: int


class Plan(TypedDict):
    """Answer to ``plan``."""

    schema_version: int
    ok: bool
    workers: list[PlannedWorker]
    problems: list[Remark]
    warnings: list[Remark]
    gpus_needed: int
    gpus_available: int


class Difference(TypedDict):
    """A key that changes, with both values as JSON; None: not set, or not shown."""

    key: str
    before: str | None
    after: str | None


class Change(TypedDict):
    """What applying a fleet does to one worker; ``left``: its pool is not in the file and goes on as it is."""

    worker: str
    pool: str
    action: Literal["start", "stop", "restart", "keep", "move"]
    keys: list[str]
    differences: NotRequired[list[Difference]]
    left: NotRequired[bool]
    reason: str


class Foresight(TypedDict):
    """Ready workers that a command stops, all at once or in turn; pools ``without`` one; seconds, where known."""

    stopped: list[str]
    restarted: list[str]
    rolled: list[str]
    without: list[str]
    about_s: float | None
    dependents: list[str]


class Foreseen(TypedDict):
    """Answer to a dry run of ``stop``, ``restart``, ``roll``."""

    workers: list[str]
    foresight: Foresight


class Diff(TypedDict):
    """Answer to ``diff``."""

    schema_version: int
    revision: int
    plan: Plan
    changes: list[Change]
    foresight: NotRequired[Foresight]


class Drift(Diff):
    """Answer to ``diff`` without a file: ``file`` is the one that the daemon was started with."""

    source: str | None
    drift: bool
    drift_reason: str | None
    file: str


class Applied(Diff):
    """Answer to ``apply``, ``reload`` and ``scale``; ``operation`` None where nothing has to change.

    ``changed``: whether this is a new revision.
    """

    operation: str | None
    changed: NotRequired[bool]


class Started(TypedDict):
    """Answer to ``start``, ``stop`` and ``restart``."""

    operation: str
    workers: list[str]


class Step(TypedDict):
    """One worker's part in an operation; ``refused``: failed, for it waits for what only a person can do."""

    name: str
    state: Literal["pending", "done", "failed"]
    phase: str
    reason: str
    evidence: list[str]
    refused: NotRequired[bool]


class Operation(TypedDict):
    """Answer to ``operation``."""

    id: str
    verb: str
    state: Literal["running", "done", "failed"]
    version: int
    workers: list[Step]


class LogChunk(TypedDict):
    """Answer to ``logs``; offsets and size in bytes. ``lost``: what of the output the log had no room for, or empty."""

    worker: str
    run: int
    text: str
    offset: int
    next_offset: int
    size: int
    ended: bool
    lost: NotRequired[str]


class Event(TypedDict):
    """One event, from op ``events`` or the PUB socket; ``by``: who asked for it, where somebody did."""

    epoch: int
    seq: int
    at: str
    kind: str
    worker: str | None
    gpu: str | int | None
    reason: str
    run: int | None
    cause: NotRequired[str]
    by: NotRequired[str]


class EventPage(TypedDict):
    """Answer to ``events``."""

    epoch: int
    first_seq: int
    next_seq: int
    events: list[Event]


class RunMemory(TypedDict):
    """What a run had of one GPU; ``gpu`` is its present index. None where nobody knows."""

    gpu: int | None
    gpu_uuid: str
    peak_bytes: int | None
    claim_bytes: int | None
    total_bytes: int | None


class Run(TypedDict):
    """One ended run of a worker; ``ran_s`` in seconds, ``step``: the setting that was lowered after it.

    There are more keys, kept for `gpuctl why -o json`.
    """

    run: int
    ended_at: str
    ran_s: NotRequired[float | None]
    cause: str
    code: int | None
    signal: int | str | None
    reason: NotRequired[str]
    ended_by: NotRequired[str]
    by: NotRequired[str | None]
    hint: NotRequired[str]
    evidence: NotRequired[list[str]]
    memory: NotRequired[list[RunMemory]]
    step: NotRequired[str | None]
    log_lost_bytes: NotRequired[int]


class Why(TypedDict):
    """Answer to ``why``; ``runs`` newest first."""

    schema_version: int
    worker: Worker
    sentences: list[str]
    fix: NotRequired[str]
    runs: list[Run]


class Pong(TypedDict):
    """Answer to ``ping``."""

    pong: Literal[True]
    pid: int
    version: str
    protocol: int
    epoch: int
    open: bool


class Detached(TypedDict):
    """Answer to ``detach``: the daemon's pid, and the workers that go on without it."""

    pid: int
    workers: list[str]


class Reexeced(Detached):
    """Answer to ``reexec``."""

    from_version: str
    version: str


class FleetText(TypedDict):
    """A fleet file as the client read it; ``directory`` is absolute."""

    text: str
    name: str
    directory: str
