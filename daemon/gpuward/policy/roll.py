"""A pool that is restarted one worker after the other, and goes back at the first that fails. Pure.

With another definition there is an earlier one to go back to: the worker that failed, and those that were restarted
before it, get that again, one after the other too. Without one the roll only stops: there is nothing to go back to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from gpuward.config.fleet import Fleet, Pool, Remark
from gpuward.policy.life import Goal, LadderStep, Phase, Worker
from gpuward.policy.reload import Change, definition


@dataclass(frozen=True, slots=True, kw_only=True)
class Roll:
    """A pool that is being restarted: ``current`` is ready again from run ``ready_in_run`` on, ``left`` come after.

    ``rolled`` have been restarted. ``earlier`` is what they ran with before, None where that is no other;
    ``steps``: what their ladders had lowered then. ``failed`` and ``failure``: who ended the roll, and how, where it is
    on its way back.
    """

    left: tuple[str, ...]
    current: str = ""
    ready_in_run: int = 0
    rolled: tuple[str, ...] = ()
    earlier: Pool | None = None
    steps: Mapping[str, tuple[LadderStep, ...]] = field(default_factory=dict)
    failed: str = ""
    failure: str = ""

    @property
    def goes_back(self) -> bool:
        """Whether it is on its way back."""
        return bool(self.failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What follows for a roll: what is left of it (None: nothing), and who is restarted now (empty: nobody).

    ``pool`` is what the pool's workers are started with from now on. ``told``: kind and sentence of an event.
    """

    roll: Roll | None
    pool: Pool
    restart: str = ""
    told: tuple[str, str] | None = None


def roll_on(roll: Roll, workers: Mapping[str, Worker], pool: Pool) -> Turn:
    """Look at a roll again."""
    current = workers.get(roll.current)
    if current is None or not _takes_part(current):
        return _next(roll, workers, pool)
    if current.phase is Phase.FAILED or _fell(current, roll.ready_in_run):
        return _after_a_failure(roll, current, workers, pool)
    if current.phase is Phase.READY and current.run >= roll.ready_in_run:
        return _next(replace(roll, rolled=(*roll.rolled, current.name)), workers, pool)
    if current.phase is Phase.READY:  # the daemon that began this restart has not come to do it
        return Turn(roll=roll, pool=pool, restart=current.name)
    return Turn(roll=roll, pool=pool)


def more_than_a_roll(name: str, old: Fleet, new: Fleet, changes: Iterable[Change]) -> Remark | None:
    """Say what a fleet changes beside the definition of one pool; None where it is nothing."""
    others = [pool.name for pool in (*old.pools, *new.pools) if pool.name != name and _other(pool.name, old, new)]
    beside = [f"pool '{other}' changes too" for other in dict.fromkeys(others)]
    beside += [
        f"{change.worker}: {change.action}, {change.reason}"
        for change in changes
        if change.pool == name and change.action not in {"restart", "keep"}
    ]
    if name not in {pool.name for pool in new.pools}:
        beside.append(f"there is no pool '{name}' in it")
    if not beside:
        return None
    way_out = (
        f"a roll changes pool '{name}' alone, with its workers on the GPUs that they have; gpuctl apply does the rest"
    )
    return Remark(code="more-than-a-roll", pool=name, message=f"{'; '.join(beside)}: {way_out}")


def _other(name: str, old: Fleet, new: Fleet) -> bool:
    there = [{pool.name: pool for pool in fleet.pools}.get(name) for fleet in (old, new)]
    return there[0] != there[1]


def reason_of(roll: Roll) -> str:
    """Why a worker of it is restarted."""
    if roll.goes_back:
        return f"rolled back: {roll.failed} failed"
    return f"rolled by command ({len(roll.rolled)} done, {len(roll.left)} to come)"


def _next(roll: Roll, workers: Mapping[str, Worker], pool: Pool) -> Turn:
    for position, name in enumerate(roll.left):
        worker = workers.get(name)
        if worker is None or not _takes_part(worker):
            continue
        has_it = roll.earlier is not None and worker.definition == definition(pool)
        if has_it and worker.phase is Phase.READY:
            continue
        starts = has_it and worker.phase is Phase.STARTING
        ahead = replace(
            roll, left=roll.left[position + 1 :], current=name, ready_in_run=worker.run if starts else worker.run + 1
        )
        return Turn(roll=ahead, pool=pool, restart="" if starts else name)
    told = None
    if roll.goes_back:
        told = ("roll-back-done", f"pool {pool.name} is back at its earlier definition after {roll.failure}")
    return Turn(roll=None, pool=pool, told=told)


def _after_a_failure(roll: Roll, current: Worker, workers: Mapping[str, Worker], pool: Pool) -> Turn:
    ended = f"at {current.name}: {current.reason}" if roll.earlier is None else f"at {current.name}: {_why(current)}"
    if roll.goes_back:
        lost = f"the way back stops {ended}; {_whereabouts(roll, workers)}; first it was {roll.failure}"
        return Turn(roll=None, pool=pool, told=("roll-stopped", f"the roll of {pool.name}: {lost}"))
    if roll.earlier is None:
        why = "nothing to roll back: all ran with this definition before"
        told = f"the roll of {pool.name} stops {ended}; {_whereabouts(roll, workers)}; {why}"
        return Turn(roll=None, pool=pool, told=("roll-stopped", told))
    concerned = [name for name in _with_another(roll.earlier, workers) if name != current.name]
    back = replace(roll, left=tuple(concerned), current="", rolled=(), failed=current.name, failure=ended)
    told = f"the roll of {pool.name} stops {ended}; back to the earlier definition: {current.name}"
    told += "".join(f", {name}" for name in concerned)
    first = replace(back, current=current.name, ready_in_run=current.run + 1)
    return Turn(roll=first, pool=roll.earlier, restart=current.name, told=("roll-back", told))


def _why(worker: Worker) -> str:
    """The reason without what would follow from it, which is not what follows in a roll."""
    return worker.reason.split(";")[0]


def _with_another(earlier: Pool, workers: Mapping[str, Worker]) -> Iterator[str]:
    """Workers of the pool whose newest run has another definition than this one."""
    wanted = definition(earlier)
    for worker in workers.values():
        if worker.pool == earlier.name and _takes_part(worker) and worker.definition not in {"", wanted}:
            yield worker.name


def _whereabouts(roll: Roll, workers: Mapping[str, Worker]) -> str:
    rolled = [f"{name} ({workers[name].phase})" for name in roll.rolled if name in workers]
    return f"restarted: {', '.join(rolled) or 'none'}; left as they are: {', '.join(roll.left) or 'none'}"


def _takes_part(worker: Worker) -> bool:
    return worker.goal is Goal.UP and not worker.removed


def _fell(worker: Worker, ready_in_run: int) -> bool:
    """Whether the run that the roll started has ended by itself."""
    exit_ = worker.last_exit
    return exit_ is not None and exit_.run >= ready_in_run and exit_.cause != "commanded"
