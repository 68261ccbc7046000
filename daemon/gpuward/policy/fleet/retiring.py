"""When a worker that leaves the fleet goes: not before one of those that stay serves. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from gpuward.policy.fleet.preflight import WouldNotReturn
from gpuward.policy.worker.life import Goal, Phase, Worker


def may_retire(workers: Mapping[str, Worker], worker: Worker) -> bool:
    """Whether a worker that leaves may go now.

    It does not serve, nobody of its pool stays, one that stays serves, or somebody waits for its GPUs.
    """
    stay = [one for one in workers.values() if one.pool == worker.pool and not one.removed and one.goal is Goal.UP]
    if worker.phase is not Phase.READY or not stay or any(one.phase is Phase.READY for one in stay):
        return True
    return any(_waits_for_its_gpus(one, worker) for one in workers.values())


def _waits_for_its_gpus(other: Worker, worker: Worker) -> bool:
    """Whether a blocked worker is to have a GPU that this one has: both would wait for each other."""
    blocked = other.phase is Phase.BLOCKED and other.goal is Goal.UP and not other.removed
    return blocked and not {*worker.run_uuids}.isdisjoint(other.device_uuids)


def nobody_left(
    workers: Mapping[str, Worker], leaving: Collection[str], obstacles: Mapping[str, WouldNotReturn]
) -> Iterable[tuple[str, str]]:
    """The only ready workers of pools that leave although none of those that stay can serve, each with why."""
    for name in leaving:
        worker = workers.get(name)
        if worker is None or worker.phase is not Phase.READY:
            continue
        stay = [
            one
            for one in workers.values()
            if one.pool == worker.pool and one.name not in leaving and not one.removed and one.goal is Goal.UP
        ]
        if stay and all(one.phase is Phase.FAILED or one.name in obstacles for one in stay):
            told = "; ".join(str(obstacles.get(one.name, f"{one.name} has failed")) for one in stay)
            yield name, f"nobody of pool {worker.pool} would serve then: {told}"
