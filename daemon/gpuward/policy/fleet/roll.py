"""A pool that is changed one worker after the other, and goes back at the first that fails. Pure.

With another definition there is an earlier one to go back to: the worker that failed, and those that were restarted
before it, get that again, one after the other too. Without one the roll only stops: there is nothing to go back to.
Who does not serve anyway gets the new definition at once. The only ready worker of a pool is not taken away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gpuward.config.fleet import Pool
from gpuward.policy.fleet.taking import Seen, held_back, is_in_the_way, kept_down, may_go, nobody_else, takes_part
from gpuward.policy.reasons import By
from gpuward.policy.worker.definition import definition
from gpuward.policy.worker.life import LadderStep, Phase, Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Roll:
    """A pool that is being changed: who in ``turns`` is not in ``rolled`` is under way, ``left`` come after.

    ``turns``: from which run on a worker that had its turn counts. ``rolled`` have been ready for long enough.
    ``earlier`` is what they ran with before, None where that is no other; ``steps``: what their ladders had lowered
    then, ``places``: the GPUs that they had then. ``hopeless``: had failed before their turn came, so that their
    failing tells nothing. ``failed`` and ``failure``: who ended the roll, and how, where it is on its way back.
    ``force``: neither the last ready worker nor what would not come back is spared. ``asked``: why it is done,
    ``by``: who asked.
    ``current`` and ``ready_in_run`` are of records of earlier versions, which rolled one worker at a time.
    """

    left: tuple[str, ...]
    current: str = ""
    ready_in_run: int = 0
    rolled: tuple[str, ...] = ()
    earlier: Pool | None = None
    steps: Mapping[str, tuple[LadderStep, ...]] = field(default_factory=dict)
    failed: str = ""
    failure: str = ""
    turns: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hopeless: tuple[str, ...] = ()
    force: bool = False
    asked: str = "rolled by command"
    by: By | None = None

    @property
    def goes_back(self) -> bool:
        """Whether it is on its way back."""
        return bool(self.failed)

    def all_turns(self, workers: Mapping[str, Worker]) -> dict[str, int]:
        """From which run on each worker of it counts, also of those whose turn is still to come."""
        to_come = {name: workers[name].run + 1 for name in self.left if name in workers}
        return {**self.turns, **to_come}

    @property
    def under_way(self) -> tuple[str, ...]:
        """Who is being restarted now, or not ready for long enough yet."""
        return tuple(name for name in self.turns if name not in self.rolled)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What follows for a roll: what is left of it (None: nothing), and who is restarted now.

    ``pool`` is what the pool's workers are started with from now on. ``told``: kind and sentence of an event about
    ``about``.
    """

    roll: Roll | None
    pool: Pool
    restarts: tuple[str, ...] = ()
    told: tuple[str, str] | None = None
    about: str = ""


def roll_on(roll: Roll, seen: Seen, pool: Pool) -> Turn:
    """Look at a roll again."""
    roll, seen = _of_this_version(roll), replace(seen, force=roll.force)
    for name in roll.turns:
        worker = seen.workers.get(name)
        ended = _failure(roll, worker, seen, pool) if worker is not None and takes_part(worker) else ""
        if worker is not None and ended:
            return _after_a_failure(roll, worker, ended, seen, pool)
    roll = replace(roll, rolled=(*roll.rolled, *(name for name in roll.under_way if _is_done(roll, name, seen, pool))))
    return _take_turns(roll, seen, pool)


def next_look_s(roll: Roll, workers: Mapping[str, Worker], pool: Pool) -> float | None:
    """When a worker that is under way has been ready for long enough; None where none is ready."""
    times = [
        worker.ready_since_s + pool.min_ready_s
        for name in roll.under_way
        if (worker := workers.get(name)) is not None
        and worker.phase is Phase.READY
        and worker.ready_since_s is not None
    ]
    return min(times, default=None)


def reason_of(roll: Roll) -> str:
    """Why a worker of it is restarted."""
    if roll.goes_back:
        return f"rolled back: {roll.failed} failed"
    return f"{roll.asked}: {len(roll.rolled)} done, {len(roll.left)} to come"


def _of_this_version(roll: Roll) -> Roll:
    if not roll.current:
        return roll
    return replace(roll, current="", turns={**roll.turns, roll.current: roll.ready_in_run})


def _is_done(roll: Roll, name: str, seen: Seen, pool: Pool) -> bool:
    worker = seen.workers.get(name)
    if worker is None or not takes_part(worker):
        return True
    if name in roll.hopeless and (worker.phase is Phase.FAILED or _fell(worker, roll.turns[name])):
        return True
    ready = worker.phase is Phase.READY and worker.run >= roll.turns[name] and worker.ready_since_s is not None
    return ready and seen.now_s - (worker.ready_since_s or 0.0) >= pool.min_ready_s


def _take_turns(roll: Roll, seen: Seen, pool: Pool) -> Turn:
    """Give as many of those that are left their turn as may be away at once."""
    again = [name for name in roll.under_way if _was_not_restarted(seen.workers[name], roll.turns[name])]
    restarts, passed = list(again), []  # `again`: the daemon that began their restart has not come to do it
    for name in sorted(roll.left, key=lambda name: _serves(seen.workers.get(name))):
        worker = seen.workers.get(name)
        if worker is None or not takes_part(worker):
            passed.append(name)
            continue
        has_it = roll.earlier is not None and _has(worker, pool)
        if has_it and worker.phase in {Phase.READY, Phase.STARTING}:
            roll = _with_turn(roll, worker, worker.run)
            continue
        if worker.phase is not Phase.READY:
            roll, restarted = _of_who_does_not_serve(roll, worker, seen)
            restarts += restarted
            continue
        going = {*restarts, *roll.under_way} - {*roll.rolled}
        if not (is_in_the_way(worker, seen) or may_go(worker, seen, pool, going, roll.hopeless)):
            continue
        obstacle = held_back(seen, pool)
        if not roll.force:
            obstacle = obstacle or kept_down(name, seen) or nobody_else(worker, seen, pool)
        if obstacle:
            return _after_a_failure(roll, worker, f"{name} was not touched: {obstacle}", seen, pool)
        roll = _with_turn(roll, worker, worker.run + 1)
        restarts.append(name)
    roll = replace(roll, left=tuple(name for name in roll.left if name not in passed))
    if roll.left or roll.under_way or restarts:
        return Turn(roll=roll, pool=pool, restarts=tuple(restarts))
    return _over(roll, pool)


def _over(roll: Roll, pool: Pool) -> Turn:
    told = None
    if roll.goes_back:
        told = ("roll-back-done", f"pool {pool.name} is back at its earlier definition after {roll.failure}")
    return Turn(roll=None, pool=pool, told=told, about=roll.failed)


def _serves(worker: Worker | None) -> bool:
    return worker is not None and worker.phase is Phase.READY


def starts_anew(roll: Roll, worker: Worker) -> bool:
    """Whether the run that a worker is starting is what this roll would give it: nothing is to change but the run."""
    return roll.earlier is None and not roll.places and worker.phase is Phase.STARTING


def _of_who_does_not_serve(roll: Roll, worker: Worker, seen: Seen) -> tuple[Roll, list[str]]:
    """Who is not ready has nothing to lose: its turn is now; nobody waits for one that cannot come."""
    if starts_anew(roll, worker):
        return _with_turn(roll, worker, worker.run), []
    roll = _with_turn(roll, worker, worker.run + 1)
    if worker.name in seen.obstacles:
        known = (*roll.hopeless, worker.name)
        roll = replace(roll, hopeless=known, rolled=(*roll.rolled, worker.name))
    return roll, [worker.name]


def _with_turn(roll: Roll, worker: Worker, run: int) -> Roll:
    hopeless = (*roll.hopeless, worker.name) if worker.phase is Phase.FAILED and not roll.goes_back else roll.hopeless
    left = tuple(name for name in roll.left if name != worker.name)
    return replace(roll, left=left, turns={**roll.turns, worker.name: run}, hopeless=hopeless)


def _was_not_restarted(worker: Worker, run: int) -> bool:
    return worker.phase in {Phase.READY, Phase.FAILED} and worker.run < run and worker.ending is None


def _has(worker: Worker, pool: Pool) -> bool:
    return worker.definition == definition(pool) and worker.run_uuids == worker.device_uuids


def _after_a_failure(roll: Roll, worker: Worker, ended: str, seen: Seen, pool: Pool) -> Turn:
    if roll.goes_back:
        lost = f"the way back stops {ended}; {_whereabouts(roll, seen.workers)}; first it was {roll.failure}"
        told = ("roll-stopped", f"the roll of {pool.name}: {lost}")
        return Turn(roll=None, pool=pool, told=told, about=worker.name)
    if roll.earlier is None:
        why = "nothing to roll back: all ran with this definition before"
        sentence = f"the roll of {pool.name} stops {ended}; {_whereabouts(roll, seen.workers)}; {why}"
        return Turn(roll=None, pool=pool, told=("roll-stopped", sentence), about=worker.name)
    concerned = _with_another(roll.earlier, worker, seen.workers)
    back = replace(roll, left=concerned, rolled=(), turns={}, hopeless=(), failed=worker.name, failure=ended)
    sentence = (
        f"the roll of {pool.name} stops {ended}; back to the earlier definition: {', '.join(concerned) or 'none'}"
    )
    first = _take_turns(back, seen, roll.earlier)
    return replace(first, told=("roll-back", sentence), about=worker.name)


def _why(worker: Worker, roll: Roll) -> str:
    """How it ended, without what would follow from it, which is not what follows in a roll."""
    ended = worker.last_exit.reason if worker.last_exit is not None else ""
    return f"at {worker.name}: {worker.reason if roll.earlier is None else ended or worker.why}"


def _with_another(earlier: Pool, failed: Worker, workers: Mapping[str, Worker]) -> tuple[str, ...]:
    """Workers of the pool whose newest run has another definition than this one, who failed before all others."""
    wanted = definition(earlier)
    names = [
        worker.name
        for worker in workers.values()
        if worker.pool == earlier.name and takes_part(worker) and worker.definition not in {"", wanted}
    ]
    return tuple(sorted(names, key=lambda name: name != failed.name))


def _whereabouts(roll: Roll, workers: Mapping[str, Worker]) -> str:
    rolled = [f"{name} ({workers[name].phase})" for name in roll.rolled if name in workers]
    return f"restarted: {', '.join(rolled) or 'none'}; left as they are: {', '.join(roll.left) or 'none'}"


def _failure(roll: Roll, worker: Worker, seen: Seen, pool: Pool) -> str:
    """How the worker failed since it had its turn; empty where it did not, or where that tells nothing."""
    run = roll.turns[worker.name]
    if worker.name in roll.hopeless:
        return ""
    if _fell(worker, run) or (worker.phase is Phase.FAILED and worker.run >= run):
        return _why(worker, roll)
    if worker.phase is not Phase.BLOCKED:
        return ""
    obstacle = kept_down(worker.name, seen) or held_back(seen, pool)
    return f"at {worker.name}: {obstacle}" if obstacle else ""


def _fell(worker: Worker, run: int) -> bool:
    """Whether the run that the roll started, or a later one, has ended by itself."""
    exit_ = worker.last_exit
    return exit_ is not None and exit_.run >= run and exit_.cause not in {"commanded", "moved"}
