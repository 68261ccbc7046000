"""Many workers of one pool: its first start is made alone. Pure.

Ten workers that cannot start tell no more than one does, and take ten GPUs through it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gpuward.config.fleet import Pool
from gpuward.policy.reasons import Wait
from gpuward.policy.worker.definition import definition
from gpuward.policy.worker.life import Goal, Phase, Worker

_TRYING: Final = frozenset({Phase.STARTING, Phase.RELEASING, Phase.BACKOFF})
_OF_THE_GPU: Final = frozenset({"gpu-hardware", "cuda-fault"})
"""Causes that say nothing of the other workers."""


def ramp_obstacle(workers: Iterable[Worker], worker: Worker, pool: Pool) -> Wait | None:
    """Say why a worker of a pool has to wait for others of it; None where it may start."""
    if not first_starts_alone(pool):
        return None
    members = [other for other in workers if other.pool == pool.name and other.goal is Goal.UP and not other.removed]
    others = [other for other in members if other.name != worker.name]
    as_planned = definition(pool)
    if any(member.proved == as_planned for member in members):
        return _too_many(others, pool)
    for other in others:
        cause = other.last_exit.cause if other.last_exit is not None else ""
        if other.phase is Phase.FAILED and cause not in _OF_THE_GPU:
            text = f"held: {other.name} started first and has failed: {other.reason}"
            return Wait(kind="first-worker-failed", text=text, on=other.name)
        late = other.ending is not None and other.ending.kind == "start-timeout"
        if other.phase in _TRYING or (other.phase is Phase.STOPPING and late):
            text = f"waits for {other.name} ({other.phase}): the first worker of a pool starts alone"
            return Wait(kind="first-worker", text=text, on=other.name)
    return None


def first_starts_alone(pool: Pool) -> bool:
    """Whether the first worker of the pool that has a definition is waited for before the others start."""
    return pool.workers >= 2 and pool.engine != "command"


def _too_many(others: Iterable[Worker], pool: Pool) -> Wait | None:
    starting = sum(other.phase is Phase.STARTING for other in others)
    if pool.max_parallel_starts is None or starting < pool.max_parallel_starts:
        return None
    text = f"waits for its turn: {starting} of the pool start now, max-parallel-starts is {pool.max_parallel_starts}"
    return Wait(kind="turn", text=text)
