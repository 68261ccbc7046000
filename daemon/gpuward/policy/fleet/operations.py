"""What became of a command that takes time: start, stop, restart, apply. Pure.

An operation names workers and what each must reach. A later operation on the same worker that wants the same of it is
joined: both end when it is there. One that wants the opposite supersedes the earlier one there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from gpuward.policy.fleet.roll import Roll
from gpuward.policy.reasons import Wait
from gpuward.policy.worker.life import Goal, Phase, Worker

Verb = Literal["start", "stop", "restart", "apply", "scale", "reload", "reset", "roll"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One worker of an operation: ``down``, or ready in run ``ready_in_run`` or later.

    ``evidence``: where it failed because a run ended, the lines of its log that tell why. ``refused``: it failed since
    what it waits for is a person's doing.
    """

    name: str
    down: bool
    ready_in_run: int = 0
    state: Literal["pending", "done", "failed"] = "pending"
    phase: str = ""
    reason: str = ""
    evidence: tuple[str, ...] = ()
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A command under way; ``version`` grows with every change that a waiting client should see.

    ``rolling``: pools that it changes worker by worker, ``back``: those of them that have failed and are not back at
    the earlier definition yet. ``goes_back`` is the same of earlier versions, which rolled one pool.
    """

    id: str
    verb: Verb
    targets: tuple[Target, ...]
    version: int = 1
    goes_back: bool = False
    rolling: tuple[str, ...] = ()
    back: tuple[str, ...] = ()

    @property
    def state(self) -> Literal["running", "done", "failed"]:
        """Running until every worker is settled; failed if any failed."""
        states = {target.state for target in self.targets}
        if "pending" in states or self.back or self.goes_back:
            return "running"
        return "failed" if "failed" in states else "done"


ADAPTED_AFTER = frozenset({"gpu-oom-startup", "gpu-oom-runtime", "kv-cache-too-small"})
"""Causes after which a worker with a ladder comes back smaller: its command waits for that."""

NONE_STOPPED: Mapping[str, str] = MappingProxyType({})
NOBODY_KEPT_DOWN: Mapping[str, Wait] = MappingProxyType({})


def advance(
    operation: Operation,
    workers: Mapping[str, Worker],
    rolls: Mapping[str, Roll],
    stopped: Mapping[str, str] = NONE_STOPPED,
    kept_down: Mapping[str, Wait] = NOBODY_KEPT_DOWN,
) -> Operation:
    """Look at the workers again, and at their rolls.

    ``stopped``: why rolls of pools ended before their end. ``kept_down``: what blocked workers wait for, of those that
    only a person can help.
    """
    operation = _given_up(_of_this_version(operation), workers, kept_down)
    looked: dict[str, Target] = {}
    back: list[str] = []
    for pool in dict.fromkeys(pool_of(target.name) for target in operation.targets):
        targets = [target for target in operation.targets if pool_of(target.name) == pool]
        if pool not in operation.rolling:
            looked |= {target.name: _look(target, workers.get(target.name)) for target in targets}
            continue
        roll = rolls.get(pool)
        back += [pool] if roll is not None and roll.goes_back else []
        done = _advance_roll(targets, workers, roll, was_going_back=pool in operation.back, why=stopped.get(pool, ""))
        looked |= {target.name: target for target in done}
    return _with_targets(operation, tuple(looked[one.name] for one in operation.targets), tuple(back))


def _given_up(operation: Operation, workers: Mapping[str, Worker], kept_down: Mapping[str, Wait]) -> Operation:
    """Nobody waits for what only a person can do."""
    targets = tuple(
        replace(one, state="failed", refused=True, phase=workers[one.name].phase, reason=kept_down[one.name].text)
        if one.state == "pending" and not one.down and one.name in kept_down and one.name in workers
        else one
        for one in operation.targets
    )
    return _with_targets(operation, targets)


def _of_this_version(operation: Operation) -> Operation:
    if operation.verb != "roll" or operation.rolling or not operation.targets:
        return operation
    pool = (pool_of(operation.targets[0].name),)
    return replace(operation, rolling=pool, back=pool if operation.goes_back else (), goes_back=False)


def _advance_roll(
    targets: list[Target], workers: Mapping[str, Worker], roll: Roll | None, *, was_going_back: bool, why: str
) -> Iterable[Target]:
    """A roll ends at the first failure, and only when those that go back are back."""
    if roll is not None and roll.goes_back:
        return [_on_the_way_back(target, roll, workers.get(target.name)) for target in targets]
    if was_going_back:
        return [_back(target, workers.get(target.name)) for target in targets]
    looked = [_look(target, workers.get(target.name)) for target in targets]
    if roll is None:
        return [_left_out(target, why) for target in _none_after_a_failure(looked)]
    return [_in_roll(before, after, roll) for before, after in zip(targets, looked, strict=True)]


def _in_roll(before: Target, looked: Target, roll: Roll) -> Target:
    """A worker is done when the roll says so: it has been ready for long enough."""
    if before.state != "pending" or looked.name in roll.rolled:
        return looked
    if looked.down or looked.name in {*roll.left, *roll.turns}:
        return replace(looked, state=before.state if looked.state == "done" and not looked.down else looked.state)
    return looked


def _on_the_way_back(target: Target, roll: Roll, worker: Worker | None) -> Target:
    phase = worker.phase if worker is not None else "gone"
    if target.name != roll.failed:
        return replace(target, phase=phase)
    evidence = worker.last_exit.evidence if worker is not None and worker.last_exit is not None else ()
    return replace(target, state="failed", phase=phase, reason=roll.failure, evidence=target.evidence or evidence)


def _back(target: Target, worker: Worker | None) -> Target:
    """What a roll that went back says of each worker: none has what it should have got."""
    phase = worker.phase if worker is not None else "gone"
    if target.state == "failed":
        return replace(target, phase=phase, reason=f"{target.reason}; now {phase} with its earlier definition")
    was = "rolled back" if target.state == "done" else "left as it is"
    return replace(target, state="failed", phase=phase, reason=f"{was}: the roll failed; {phase}")


def give_way(operation: Operation, later: Operation) -> Operation:
    """A later command concerns workers of this one: join it where both want the same, else be superseded there."""
    rivals = {target.name: target for target in later.targets}
    return _with_targets(
        operation, tuple(_yield(target, rivals.get(target.name), later.id) for target in operation.targets)
    )


def pool_of(worker: str) -> str:
    """The pool that a worker's name speaks of."""
    return worker.rpartition("/")[0]


def _with_targets(operation: Operation, targets: tuple[Target, ...], back: tuple[str, ...] | None = None) -> Operation:
    back = operation.back if back is None else back
    if (targets, back) == (operation.targets, operation.back):
        return operation
    return replace(operation, targets=targets, back=back, version=operation.version + 1)


def _none_after_a_failure(targets: list[Target]) -> list[Target]:
    """A roll ends at the first failure: those that it has not come to are left as they are."""
    failed = next((target.name for target in targets if target.state == "failed"), None)
    if failed is None:
        return targets
    reason = f"left as it is: the roll stopped at {failed}"
    return [
        replace(target, state="failed", reason=reason) if target.state == "pending" else target for target in targets
    ]


def _left_out(target: Target, why: str) -> Target:
    """The roll has stopped, or another command or a stop has taken its place, before it came to this worker."""
    if target.state != "pending":
        return target
    return replace(target, state="failed", reason=why or "the roll has ended without it")


def _yield(target: Target, rival: Target | None, later: str) -> Target:
    if rival is None or target.state != "pending":
        return target
    if target.down is rival.down:
        return replace(target, ready_in_run=max(target.ready_in_run, rival.ready_in_run))
    wanted = "stopped" if rival.down else "wanted up"
    return replace(target, state="failed", reason=f"superseded by {later}: it is {wanted} now")


def _look(target: Target, worker: Worker | None) -> Target:
    if target.state != "pending":
        return target
    if worker is None:
        state: Literal["done", "failed"] = "done" if target.down else "failed"
        return replace(target, state=state, phase="gone", reason="no longer in the fleet")
    seen = replace(target, phase=worker.phase, reason=worker.reason)
    if target.down:
        if worker.phase is Phase.READY and worker.removed and worker.goal is Goal.UP:
            return replace(seen, reason="serves until one of those that stay is ready")
        return replace(seen, state="done") if worker.phase is Phase.STOPPED else seen
    if worker.phase is Phase.READY and worker.run >= target.ready_in_run and worker.ending is None:
        return replace(seen, state="done")
    return _look_for_failure(seen, worker)


def _look_for_failure(seen: Target, worker: Worker) -> Target:
    exit_ = worker.last_exit
    ended = exit_ is not None and exit_.run >= seen.ready_in_run
    came_to_rest = worker.phase in {Phase.FAILED, Phase.STOPPED} and (ended or worker.goal is Goal.DOWN)
    adapts = bool(worker.steps) and exit_ is not None and exit_.cause in ADAPTED_AFTER
    fell_back = ended and not adapts and worker.phase in {Phase.RELEASING, Phase.BACKOFF, Phase.BLOCKED}
    held = worker.phase is Phase.BLOCKED and worker.wait is not None and worker.wait.kind == "first-worker-failed"
    if not came_to_rest and not fell_back and not held:
        return seen
    evidence = exit_.evidence if exit_ is not None and ended else ()
    return replace(seen, state="failed", evidence=evidence)
