"""Many workers of one pool: its first start is made alone, a roll restarts one after the other. Pure.

Ten workers that cannot start tell no more than one does, and take ten GPUs through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from gpuward.config.fleet import Pool
from gpuward.policy.life import Goal, Phase, Worker
from gpuward.policy.reload import definition

HELD: Final = "held: "
"""How the reason of a worker begins that starts only when somebody has mended something."""

_TRYING: Final = frozenset({Phase.STARTING, Phase.STOPPING, Phase.RELEASING, Phase.BACKOFF})
_OF_THE_GPU: Final = frozenset({"gpu-hardware", "cuda-fault"})
"""Causes that say nothing of the other workers."""


def ramp_obstacle(workers: Iterable[Worker], worker: Worker, pool: Pool) -> str:
    """Say why a worker of a pool has to wait for others of it; empty where it may start."""
    if pool.workers < 2 or pool.engine == "command":
        return ""
    members = [other for other in workers if other.pool == pool.name and other.goal is Goal.UP and not other.removed]
    others = [other for other in members if other.name != worker.name]
    as_planned = definition(pool)
    if any(member.proved == as_planned for member in members):
        return _too_many(others, pool)
    for other in others:
        cause = other.last_exit.cause if other.last_exit is not None else ""
        if other.phase is Phase.FAILED and cause not in _OF_THE_GPU:
            return f"{HELD}{other.name} started first and has failed: {other.reason}"
        if other.phase in _TRYING:
            return f"waits for {other.name} ({other.phase}): the first worker of a pool starts alone"
    return ""


def _too_many(others: Iterable[Worker], pool: Pool) -> str:
    starting = sum(other.phase is Phase.STARTING for other in others)
    if pool.max_parallel_starts is None or starting < pool.max_parallel_starts:
        return ""
    return f"waits for its turn: {starting} of the pool start now, max-parallel-starts is {pool.max_parallel_starts}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Roll:
    """A pool that is being restarted: ``current`` is ready again from run ``ready_in_run`` on, ``left`` come after.

    ``rolled`` have been restarted; of these and ``current``, ``changed`` ran with another definition before.
    """

    left: tuple[str, ...]
    current: str = ""
    ready_in_run: int = 0
    rolled: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


def roll_on(roll: Roll, workers: Mapping[str, Worker], pool: Pool) -> tuple[Roll | None, str, str]:
    """Return what is left of a roll, the worker to be restarted now, and why it stops; both empty for a wait."""
    current = workers.get(roll.current)
    if current is not None and current.goal is Goal.UP and not current.removed:
        if current.phase is Phase.FAILED or _fell(current, roll.ready_in_run):
            return None, "", f"stops at {current.name}: {current.reason}; {_state_of(roll, workers)}"
        if current.phase is not Phase.READY or current.run < roll.ready_in_run:
            return roll, "", ""
        roll = replace(roll, rolled=(*roll.rolled, current.name))
    for position, name in enumerate(roll.left):
        worker = workers.get(name)
        if worker is not None and worker.goal is Goal.UP and not worker.removed:
            changed = (*roll.changed, name) if worker.definition not in {"", definition(pool)} else roll.changed
            then = Roll(
                left=roll.left[position + 1 :],
                current=name,
                ready_in_run=worker.run + 1,
                rolled=roll.rolled,
                changed=changed,
            )
            return then, name, ""
    return None, "", ""


def _state_of(roll: Roll, workers: Mapping[str, Worker]) -> str:
    """Say what a roll that stops leaves behind, and whether there is an earlier definition to go back to."""
    rolled = [f"{name} ({workers[name].phase})" for name in roll.rolled if name in workers]
    before = f"with another definition before: {', '.join(roll.changed)}; apply the earlier fleet to have it again"
    return "; ".join(
        (
            f"restarted: {', '.join(rolled) or 'none'}",
            f"left as they are: {', '.join(roll.left) or 'none'}",
            f"ran {before}" if roll.changed else "nothing to roll back: all ran with this definition before",
        )
    )


def _fell(worker: Worker, ready_in_run: int) -> bool:
    """Whether the run that the roll started has ended by itself."""
    return worker.last_exit is not None and worker.last_exit.run >= ready_in_run
