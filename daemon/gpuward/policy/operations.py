"""What became of a command that takes time: start, stop, restart, apply. Pure.

An operation names workers and what each must reach; a later operation on the same worker supersedes it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from gpuward.policy.life import Goal, Phase, Worker

Verb = Literal["start", "stop", "restart", "apply", "scale", "reload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One worker of an operation: ``down``, or ready in run ``ready_in_run`` or later."""

    name: str
    down: bool
    ready_in_run: int = 0
    state: Literal["pending", "done", "failed"] = "pending"
    phase: str = ""
    reason: str = ""


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
    targets = tuple(
        _look(target, workers.get(target.name)) if target.state == "pending" else target for target in operation.targets
    )
    if targets == operation.targets:
        return operation
    return replace(operation, targets=targets, version=operation.version + 1)


def supersede(operation: Operation, names: frozenset[str], by: str) -> Operation:
    """A later command took these workers over."""
    targets = tuple(
        replace(target, state="failed", reason=f"superseded by {by}")
        if target.state == "pending" and target.name in names
        else target
        for target in operation.targets
    )
    if targets == operation.targets:
        return operation
    return replace(operation, targets=targets, version=operation.version + 1)


def _look(target: Target, worker: Worker | None) -> Target:
    if worker is None:
        state: Literal["done", "failed"] = "done" if target.down else "failed"
        return replace(target, state=state, phase="gone", reason="no longer in the fleet")
    seen = replace(target, phase=worker.phase, reason=worker.reason)
    if target.down:
        return replace(seen, state="done") if worker.phase is Phase.STOPPED else seen
    if worker.phase is Phase.READY and worker.run >= target.ready_in_run and worker.then is None:
        return replace(seen, state="done")
    ended = worker.last_exit is not None and worker.last_exit.run >= target.ready_in_run
    came_to_rest = worker.phase in {Phase.FAILED, Phase.STOPPED} and (ended or worker.goal is Goal.DOWN)
    fell_back = ended and worker.phase in {Phase.RELEASING, Phase.BACKOFF, Phase.BLOCKED}
    if came_to_rest or fell_back:
        return replace(seen, state="failed")
    return seen
