"""How long a run has from SIGTERM to SIGKILL. Pure; in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from gpuward.config.drain import grace_s
from gpuward.config.fleet import Pool
from gpuward.policy.worker.definition import definition
from gpuward.policy.worker.life import Worker

LOADING_GRACE_S: Final = 10.0
"""At most for a vLLM that still loads: it has no request to finish, and loses the SIGTERM (vLLM 0.32.0, measured)."""


def grace_of(worker: Worker, pool: Pool) -> float:
    """What a run has: its engine drains for as long as it was told at its start, whatever its pool says by now.

    While the run is of its pool's definition only `stop-timeout-s` can have changed, and the pool's counts.
    """
    loads = worker.ready_since_s is None and pool.engine != "command"
    whole_s = grace_s(pool)
    if worker.grace_s is not None and worker.definition != definition(pool):
        whole_s = worker.grace_s
    return min(whole_s, LOADING_GRACE_S) if loads else whole_s


def longest_stop_s(workers: Iterable[Worker], pools: Mapping[str, Pool]) -> float:
    """What stopping every pool may take, one after the other, each as long as its slowest run."""
    longest = {name: grace_s(pool) for name, pool in pools.items()}
    for worker in workers:
        longest[worker.pool] = max(longest[worker.pool], grace_of(worker, pools[worker.pool]))
    return sum(longest.values())
