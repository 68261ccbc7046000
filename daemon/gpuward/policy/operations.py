"""What became of a command that takes time: start, stop, restart, apply. Pure.

An operation names workers and what each must reach. A later operation on the same worker that wants the same of it is
joined: both end when it is there. One that wants the opposite supersedes the earlier one there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from gpuward.policy.life import Goal, Phase, Worker
from gpuward.policy.ramp import HELD

Verb = Literal["start", "stop", "restart", "apply", "scale", "reload", "reset", "roll"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One worker of an operation: ``down``, or ready in run ``ready_in_run`` or later.

    ``evidence``: where it failed because a run ended, the lines of its log that tell why.
    """

    name: str
    down: bool
    ready_in_run: int = 0
    state: Literal["pending", "done", "failed"] = "pending"
    phase: str = ""
    reason: str = ""
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A command under way; ``version`` grows with every change that a waiting client should see."""

    id: str
    verb: Verb
    targets: tuple[Target, ...]
    version: int = 1

    @property
    def state(self) -> Literal["running", "done", "failed"]:
        """Running until every worker is settled; failed if any failed."""
        states = {target.state for target in self.targets}
        if "pending" in states:
            return "running"
        return "failed" if "failed" in states else "done"


def advance(operation: Operation, workers: Mapping[str, Worker]) -> Operation:
    """Look at the workers again."""
    targets = tuple(_look(target, workers.get(target.name)) for target in operation.targets)
    return _with_targets(operation, _none_after_a_failure(targets) if operation.verb == "roll" else targets)


def give_way(operation: Operation, later: Operation) -> Operation:
    """A later command concerns workers of this one: join it where both want the same, else be superseded there."""
    rivals = {target.name: target for target in later.targets}
    return _with_targets(
        operation, tuple(_yield(target, rivals.get(target.name), later.id) for target in operation.targets)
    )


def _with_targets(operation: Operation, targets: tuple[Target, ...]) -> Operation:
    if targets == operation.targets:
        return operation
    return replace(operation, targets=targets, version=operation.version + 1)


def _none_after_a_failure(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """A roll ends at the first failure: those that it has not come to are left as they are."""
    failed = next((target.name for target in targets if target.state == "failed"), None)
    if failed is None:
        return targets
    reason = f"left as it is: the roll stopped at {failed}"
    return tuple(
        replace(target, state="failed", reason=reason) if target.state == "pending" else target for target in targets
    )


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
        return replace(seen, state="done") if worker.phase is Phase.STOPPED else seen
    if worker.phase is Phase.READY and worker.run >= target.ready_in_run and worker.then is None:
        return replace(seen, state="done")
    return _look_for_failure(seen, worker)


def _look_for_failure(seen: Target, worker: Worker) -> Target:
    exit_ = worker.last_exit
    ended = exit_ is not None and exit_.run >= seen.ready_in_run
    came_to_rest = worker.phase in {Phase.FAILED, Phase.STOPPED} and (ended or worker.goal is Goal.DOWN)
    fell_back = ended and worker.phase in {Phase.RELEASING, Phase.BACKOFF, Phase.BLOCKED}
    held = worker.phase is Phase.BLOCKED and worker.reason.startswith(HELD)
    if not came_to_rest and not fell_back and not held:
        return seen
    evidence = exit_.evidence if exit_ is not None and ended else ()
    return replace(seen, state="failed", evidence=evidence)
