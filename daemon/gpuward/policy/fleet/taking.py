"""Whom a change of a pool may take away now: never the last one that serves, never more than may be away. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from gpuward.config.fleet import Pool
from gpuward.policy.fleet.preflight import WouldNotReturn
from gpuward.policy.fleet.ramp import first_starts_alone
from gpuward.policy.worker.definition import definition
from gpuward.policy.worker.life import Goal, Phase, Worker


@dataclass(frozen=True, slots=True)
class Seen:
    """What a roll is looked at by; ``obstacles``: workers that would not come back."""

    workers: Mapping[str, Worker]
    now_s: float
    obstacles: Mapping[str, WouldNotReturn] = field(default_factory=dict)
    force: bool = False


def may_go(worker: Worker, seen: Seen, pool: Pool, going: Collection[str], hopeless: Collection[str]) -> bool:
    """Whether a ready worker may be away now; who has failed before is neither waited for nor counted."""
    others = [one for one in members(seen, pool) if one.name != worker.name]
    away = sum(
        one.name in going or not (one.phase in {Phase.READY, Phase.FAILED} or one.name in hopeless) for one in others
    )
    if away >= pool.max_unavailable:
        return False
    serving = any(one.phase is Phase.READY and one.name not in going for one in others)
    coming = any(_may_come(one, seen) for one in others)
    return serving or seen.force or not coming


def is_in_the_way(worker: Worker, seen: Seen) -> bool:
    """Whether somebody waits for GPUs that it has and is to leave: both would wait for each other."""
    leaves = {*worker.run_uuids} - {*worker.device_uuids}
    return bool(leaves) and any(
        other.phase is Phase.BLOCKED and other.goal is Goal.UP and not leaves.isdisjoint(other.device_uuids)
        for other in seen.workers.values()
    )


def nobody_else(worker: Worker, seen: Seen, pool: Pool) -> str:
    """Say that nobody of the pool would serve without this worker; empty where somebody does or may."""
    others = [one.name for one in members(seen, pool) if one.name != worker.name]
    if not others or any(_may_come(seen.workers[name], seen) for name in others):
        return ""
    why = "; ".join(str(seen.obstacles.get(name, f"{name} has failed")) for name in others)
    return f"it is the only ready worker of the pool ({why}); --force rolls it all the same"


def kept_down(name: str, seen: Seen) -> str:
    """Say what would keep a worker down; empty where nothing is known that would."""
    return str(seen.obstacles.get(name, ""))


def held_back(seen: Seen, pool: Pool) -> str:
    """Why no further worker would be started: the first that had this definition has failed (`ramp`)."""
    mine = tuple(members(seen, pool))
    wanted = definition(pool)
    if not first_starts_alone(pool) or any(one.proved == wanted for one in mine):
        return ""
    failed = next((one for one in mine if one.phase is Phase.FAILED and one.definition == wanted), None)
    return f"{failed.name} started first with this definition and has failed" if failed is not None else ""


def members(seen: Seen, pool: Pool) -> Iterator[Worker]:
    """The workers of the pool that take part."""
    return (worker for worker in seen.workers.values() if worker.pool == pool.name and takes_part(worker))


def takes_part(worker: Worker) -> bool:
    """Whether a worker is wanted up, and not leaving."""
    return worker.goal is Goal.UP and not worker.removed


def _may_come(worker: Worker, seen: Seen) -> bool:
    """Whether it serves, or may do so without a person's doing."""
    return worker.phase is Phase.READY or not (worker.phase is Phase.FAILED or worker.name in seen.obstacles)
