"""What a command would take away from those who use the workers, and for how long as far as that is known. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gpuward.config.fleet import Pool
from gpuward.policy.fleet.preflight import dependents
from gpuward.policy.worker.life import Phase, Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Foresight:
    """Ready workers that a command stops: for good (``stopped``), all at once (``restarted``) or in turn (``rolled``).

    ``without``: pools that have no ready worker meanwhile. ``about_s``: how long their starts took last, the longest of
    those at once or the sum of those in turn; None where that is not known. ``dependents`` go on without it.
    """

    stopped: tuple[str, ...]
    restarted: tuple[str, ...]
    rolled: tuple[str, ...]
    without: tuple[str, ...]
    about_s: float | None
    dependents: tuple[str, ...]

    @property
    def stops(self) -> tuple[str, ...]:
        """All ready workers that it stops."""
        return (*self.stopped, *self.restarted, *self.rolled)


def foresee(
    workers: Mapping[str, Worker],
    pools: Mapping[str, Pool],
    *,
    stopped: Collection[str] = (),
    restarted: Collection[str] = (),
    rolling: Collection[str] = (),
) -> Foresight:
    """Look at workers that a command stops or restarts; those of pools in ``rolling`` are restarted in turn."""
    ready = {worker.name: worker for worker in workers.values() if worker.phase is Phase.READY}
    in_turn = [name for name in ready if name in restarted and ready[name].pool in rolling]
    at_once = [name for name in ready if name in restarted and name not in in_turn]
    down = [name for name in ready if name in stopped]
    return Foresight(
        stopped=tuple(down),
        restarted=tuple(at_once),
        rolled=tuple(in_turn),
        without=_without(ready, pools, {*down, *at_once}, in_turn),
        about_s=_about_s(ready, pools, at_once, in_turn),
        dependents=dependents(workers, pools, [name for name in stopped if name in workers]),
    )


def start_took_s(worker: Worker) -> float | None:
    """How long the run that serves took to become ready."""
    if worker.ready_since_s is None or worker.started_s is None:
        return None
    return max(0.0, worker.ready_since_s - worker.started_s)


def _without(
    ready: Mapping[str, Worker], pools: Mapping[str, Pool], gone: Collection[str], in_turn: Collection[str]
) -> tuple[str, ...]:
    names = []
    for pool in pools:
        serving = [worker.name for worker in ready.values() if worker.pool == pool]
        left = [name for name in serving if name not in gone]
        alone = len(left) == 1 and left[0] in in_turn
        if serving and (not left or alone):
            names.append(pool)
    return tuple(names)


def _about_s(
    ready: Mapping[str, Worker], pools: Mapping[str, Pool], at_once: Collection[str], in_turn: Collection[str]
) -> float | None:
    known = {name: start_took_s(ready[name]) for name in (*at_once, *in_turn)}
    if not known or any(took_s is None for took_s in known.values()):
        return None
    by_pool: dict[str, float] = {}
    for name in in_turn:
        pool = ready[name].pool
        each_s = (known[name] or 0.0) + pools[pool].min_ready_s
        by_pool[pool] = by_pool.get(pool, 0.0) + each_s / pools[pool].max_unavailable
    return max([*(known[name] or 0.0 for name in at_once), *by_pool.values()])
