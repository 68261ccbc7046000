"""What is under way with a worker beside its own life: commands that wait for it, the roll of its pool. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from gpuward.policy.fleet.operations import Operation, Target
from gpuward.policy.fleet.roll import Roll
from gpuward.policy.worker.life import Worker

NAMED = 4


def under_way(worker: Worker, operations: Iterable[Operation], roll: Roll | None) -> Iterator[str]:
    """Say what involves this worker at present and what comes next of it; ``roll`` is that of its pool."""
    if roll is not None:
        yield _of_roll(worker.name, roll)
    for operation in operations:
        mine = next((target for target in operation.targets if target.name == worker.name), None)
        if mine is not None and operation.state == "running" and not (operation.verb == "roll" and roll is not None):
            yield _of_command(operation, mine)


def _of_command(operation: Operation, mine: Target) -> str:
    pending = [target.name for target in operation.targets if target.state == "pending"]
    done, failed = (sum(one.state == state for one in operation.targets) for state in ("done", "failed"))
    at = f"The command {operation.verb} ({operation.id}) is under way, {done} of {len(operation.targets)} workers done"
    at += f", {failed} failed" if failed else ""
    if mine.state == "failed":
        return f"{at}, this one among those that failed; it waits for {_some(pending)}."
    if mine.state == "done":
        return f"{at}, this one among them; it waits for {_some(pending)}."
    others = [name for name in pending if name != mine.name]
    beside = f"; it waits for {_some(others)} too" if others else ""
    return f"{at}: this one is to be {'stopped' if mine.down else f'ready in run {mine.ready_in_run}'}{beside}."


def _of_roll(name: str, roll: Roll) -> str:
    way = f"Its pool is taken back to its earlier definition, since {roll.failed} failed" if roll.goes_back else ""
    at = way or f"Its pool is being rolled, {len(roll.rolled)} done"
    then = f"; then {_some(roll.left)}" if roll.left else ""
    turns = roll.under_way
    if name in turns:
        return f"{at}: it is this one's turn{then}; {_if_it_fails(roll)}."
    if name in roll.left:
        before = [*turns, *roll.left[: roll.left.index(name)]]
        once = f"once {_some(before)} {_is_or_are(before)} ready again" if before else "once another is ready"
        return f"{at}: this one is restarted {once}."
    return f"{at}: it is {_some(turns) or 'nobody'}'s turn{then}; this one is left as it is."


def _if_it_fails(roll: Roll) -> str:
    if roll.earlier is None or roll.goes_back:
        return "if it fails, the roll stops here"
    return "if it fails, the pool goes back to its earlier definition"


def _is_or_are(beside: Sequence[str]) -> str:
    return "are" if len(beside) > 1 else "is"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
