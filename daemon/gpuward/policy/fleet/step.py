"""All workers together: who may start now, who waits for whom, what an applied fleet changes.

`step` answers one event and then settles: every waiting worker is looked at again, so nothing depends on which event
came first. Nothing here starts a process or reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from gpuward.config.fleet import Pool
from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.fleet.admission import obstacle, starting_neighbour
from gpuward.policy.fleet.endpoints import Listing, departure, departures_s
from gpuward.policy.fleet.other_gpus import moved as elsewhere
from gpuward.policy.fleet.preflight import WouldNotReturn, would_not_return
from gpuward.policy.fleet.release import orphans, release_obstacle
from gpuward.policy.fleet.retiring import may_retire
from gpuward.policy.fleet.roll import Roll, next_look_s, reason_of, roll_on
from gpuward.policy.fleet.taking import Seen
from gpuward.policy.gpus.holders import NOBODY, Holders
from gpuward.policy.gpus.inventory import Snapshot
from gpuward.policy.gpus.levels import Level, levels
from gpuward.policy.reasons import By, Wait
from gpuward.policy.worker.ladder import effective
from gpuward.policy.worker.life import (
    DeadlinePassed,
    Effect,
    Event,
    Forget,
    Goal,
    HaltAsked,
    Note,
    Phase,
    RestartAsked,
    StartAsked,
    StopAsked,
    Worker,
)
from gpuward.policy.worker.phases import enter, onward, waiting
from gpuward.policy.worker.step import begin_run, begin_stop
from gpuward.policy.worker.step import step as step_worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Limits of the host that decisions need."""

    memory_margin_bytes: int = 256 * 1024**2
    release_timeout_s: float = 60.0
    excluded: tuple[int | str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetState:
    """Everything that decisions are made from. ``pools`` keeps a retired pool until its last worker is gone."""

    snapshot: Snapshot
    workers: Mapping[str, Worker] = field(default_factory=dict)
    pools: Mapping[str, Pool] = field(default_factory=dict)
    terms: Terms = field(default_factory=Terms)
    halting: bool = False
    closed: Mapping[str, str] = field(default_factory=dict)
    """GPU UUID -> why it takes no new worker."""
    holders: Holders = field(default_factory=dict)
    rolls: Mapping[str, Roll] = field(default_factory=dict)
    stopped_rolls: Mapping[str, str] = field(default_factory=dict)
    """Why the last roll of a pool has ended before its end, until another begins; of this daemon life only."""
    levels: Mapping[str, Level] = field(default_factory=dict)
    used_runs: Mapping[str, int] = field(default_factory=dict)
    """The highest run number of names that are no workers at present: none comes again."""
    listing: Listing | None = None
    """What proxies know of who is ready; None where no endpoints are written."""

    def pool_of(self, worker: Worker) -> Pool:
        """Return the pool that a worker belongs to, as it is to be started: with the steps of its ladder."""
        return effective(self.pools[worker.pool], worker.steps)

    def members(self, pool: str) -> tuple[Worker, ...]:
        """Return the workers of a pool, by index."""
        return tuple(worker for worker in self.workers.values() if worker.pool == pool)


def departure_of(worker: Worker) -> StopAsked:
    """What ends a worker that is no longer part of the fleet."""
    why = "scaled down" if worker.leaves_as == "scale" else "no longer in the fleet"
    return StopAsked(why, worker.leaves_as, worker.leaves_by)


Outcome = tuple[FleetState, tuple[Effect, ...]]


def step(state: FleetState, events: Iterable[tuple[str, Event]], now_s: float) -> Outcome:
    """Answer events, each for one worker (unknown names are stale news and ignored), then settle."""
    effects: list[Effect] = []
    for name, event in events:
        worker = state.workers.get(name)
        leaves = worker is not None and worker.removed and isinstance(event, StartAsked | RestartAsked)
        if worker is None or leaves:  # who leaves the fleet comes back with the fleet only
            continue
        stepped, caused = step_worker(worker, event, state.pool_of(worker), now_s)
        state = with_worker(state, stepped)
        effects += caused
    state, caused = settle(state, now_s)
    return state, (*effects, *caused)


def halt(state: FleetState, now_s: float) -> Outcome:
    """Stop every worker in order, keeping goals; nothing starts from here on."""
    return step(replace(state, halting=True), [(name, HaltAsked()) for name in state.workers], now_s)


def observe(state: FleetState, snapshot: Snapshot, now_s: float, holders: Holders = NOBODY) -> Outcome:
    """Take a new sample in and settle; ``holders``: who its processes are. What we left behind on it is killed."""
    known = levels(state.levels, snapshot)
    state, effects = settle(replace(state, snapshot=snapshot, levels=known, holders=holders), now_s)
    return state, (*effects, *orphans(state.workers, snapshot, holders))


def reset(state: FleetState, names: Iterable[str], now_s: float, by: By | None = None) -> Outcome:
    """Undo the ladders of these workers; one that is wanted up starts again as its pool says."""
    events: list[tuple[str, Event]] = []
    for name in names:
        worker = state.workers[name]
        if worker.steps:
            state = with_worker(state, replace(worker, steps=()))
            if worker.goal is Goal.UP:
                undone = f"{len(worker.steps)} steps of its ladder undone by command"
                events.append((name, RestartAsked(undone, "reset", by)))
    return step(state, events, now_s)


def with_worker(state: FleetState, worker: Worker) -> FleetState:
    """Return the state with this worker in the place of the one of the same name."""
    if state.workers.get(worker.name) == worker:
        return state
    return replace(state, workers={**state.workers, worker.name: worker})


def settle(state: FleetState, now_s: float) -> Outcome:
    """Look at every roll and every worker until nothing moves any more."""
    state, begun = _roll_on(state, now_s)
    effects = list(begun)
    moved = True
    while moved:
        moved = False
        for name in tuple(state.workers):
            before = state.workers[name]
            after, caused = _advance(state, before, now_s)
            effects += caused
            if after is None:
                state = _without(state, name)
                moved = True
            elif after != before:
                state = with_worker(state, after)
                moved = moved or _whereabouts(after) != _whereabouts(before)
    return state, tuple(effects)


def begin_roll(
    state: FleetState, pool: Pool, earlier: Pool | None = None, *, force: bool = False, by: By | None = None
) -> FleetState:
    """Have the workers of a pool restarted one after the other, on the GPUs that they have, once it is settled.

    ``earlier``: the definition to go back to at the first failure, where ``pool`` is another.
    """
    members = [worker for worker in state.members(pool.name) if worker.goal is Goal.UP and not worker.removed]
    steps = {worker.name: worker.steps for worker in members if worker.steps and earlier is not None}
    begun = Roll(left=tuple(worker.name for worker in members), earlier=earlier, steps=steps, force=force, by=by)
    return with_roll(replace(state, pools={**state.pools, pool.name: pool}), pool.name, begun)


def with_roll(state: FleetState, pool: str, roll: Roll) -> FleetState:
    """The state in which this roll of the pool has begun."""
    stopped = {name: why for name, why in state.stopped_rolls.items() if name != pool}
    return replace(state, rolls={**state.rolls, pool: roll}, stopped_rolls=stopped)


def _roll_on(state: FleetState, now_s: float) -> Outcome:
    effects: list[Effect] = []
    for pool, before in tuple(state.rolls.items()) if not state.halting else ():
        turn = roll_on(before, Seen(state.workers, now_s, _obstacles(state, pool)), state.pools[pool])
        rolls = {other: one for other, one in state.rolls.items() if other != pool}
        rolls |= {pool: turn.roll} if turn.roll is not None else {}
        state = replace(state, rolls=rolls, pools={**state.pools, pool: turn.pool})
        if turn.told is not None:
            effects.append(Note(turn.about, *turn.told))
        if turn.told is not None and turn.roll is None:
            state = replace(state, stopped_rolls={**state.stopped_rolls, pool: turn.told[1]})
        for name in turn.restarts:
            state, caused = _restart_in_roll(state, turn.roll or before, name, now_s)
            effects += caused
    return state, tuple(effects)


def _obstacles(state: FleetState, pool: str) -> dict[str, WouldNotReturn]:
    """Workers of a pool that would not come back."""
    found = (would_not_return(state, worker, state.pools[pool]) for worker in state.members(pool))
    return {one.worker: one for one in found if one is not None}


def _restart_in_roll(state: FleetState, roll: Roll, name: str, now_s: float) -> Outcome:
    """Restart a worker whose turn it is: another definition begins with no ladder, the earlier one with its own.

    On the way back it gets the GPUs that it had, unless they are another's by now.
    """
    worker = state.workers[name]
    if roll.earlier is not None:
        worker = replace(worker, steps=roll.steps.get(worker.name, ()) if roll.goes_back else ())
    place = roll.places.get(name, ()) if roll.goes_back else ()
    if place and not _taken_by_others(state, name, place):
        worker = replace(worker, device_uuids=place)
    pool = state.pools[worker.pool]
    restarted, effects = step_worker(
        worker, RestartAsked(reason_of(roll), "roll", None if roll.goes_back else roll.by), pool, now_s
    )
    return with_worker(state, restarted), effects


def _taken_by_others(state: FleetState, name: str, uuids: tuple[str, ...]) -> bool:
    others = [worker for worker in state.workers.values() if worker.name != name and not worker.removed]
    return (
        any(not {*uuids}.isdisjoint(other.device_uuids) for other in others)
        and not state.pools[state.workers[name].pool].share
    )


def _whereabouts(worker: Worker) -> tuple[Phase, tuple[str, ...], float | None]:
    """What others, or the next look at the worker itself, may depend on."""
    return worker.phase, worker.device_uuids, worker.deadline_s


def _without(state: FleetState, name: str) -> FleetState:
    workers = {other: worker for other, worker in state.workers.items() if other != name}
    used = {worker.pool for worker in workers.values()}
    gone = state.workers[name].pool
    pools = {pool: definition for pool, definition in state.pools.items() if pool in used or pool != gone}
    rolls = {pool: one for pool, one in state.rolls.items() if pool in pools}
    used_runs = {**state.used_runs, name: state.workers[name].run}
    return replace(state, workers=workers, pools=pools, rolls=rolls, used_runs=used_runs)


def _advance(state: FleetState, worker: Worker, now_s: float) -> tuple[Worker | None, tuple[Effect, ...]]:
    if worker.deadline_s is not None and now_s >= worker.deadline_s:
        return step_worker(worker, DeadlinePassed(), state.pool_of(worker), now_s)
    if worker.removed and worker.goal is Goal.UP and may_retire(state.workers, worker):
        return step_worker(worker, departure_of(worker), state.pool_of(worker), now_s)
    match worker.phase:
        case Phase.STOPPED if worker.removed:
            return None, (Forget(worker.name),)
        case Phase.DRAINING:
            return _drain(state, worker, now_s)
        case Phase.RELEASING:
            return _releasing(state, worker, now_s), ()
        case Phase.BACKOFF if now_s >= worker.not_before_s:
            return enter(worker, Phase.BLOCKED, "the delay is over", now_s), ()
        case Phase.BLOCKED if worker.goal is Goal.UP and not state.halting:
            return _blocked(state, worker, now_s)
        case _:
            return worker, ()


def _drain(state: FleetState, worker: Worker, now_s: float) -> tuple[Worker, tuple[Effect, ...]]:
    """Stop in reverse order of `depends-on`: dependents that are on their way down go first."""
    dependents = [
        other.name
        for other in state.workers.values()
        if worker.pool in state.pool_of(other).depends_on and other.phase in {Phase.DRAINING, Phase.STOPPING}
    ]
    if dependents and (worker.ending is None or worker.ending.then != "start"):
        text = f"waits for {', '.join(dependents)} to stop first"
        return waiting(worker, Wait(kind="dependents", text=text, on=dependents[0])), ()
    measuring = starting_neighbour(state, worker) if worker.ready_since_s is not None and not state.halting else None
    if measuring is not None:
        return waiting(worker, measuring), ()
    leaves = departure(state.listing, worker, now_s)
    if leaves is not None:
        return waiting(worker, leaves), ()
    return begin_stop(worker, state.pool_of(worker), now_s)


def _releasing(state: FleetState, worker: Worker, now_s: float) -> Worker:
    missing, look_at_s = release_obstacle(state, worker)
    timed_out = now_s - worker.since_s >= state.terms.release_timeout_s
    if missing is not None and not timed_out:
        again_s = look_at_s if look_at_s is not None and look_at_s > now_s else None
        return waiting(replace(worker, deadline_s=again_s), missing)
    if now_s < worker.not_before_s:
        return onward(worker, Phase.BACKOFF, now_s)
    return onward(worker, Phase.BLOCKED, now_s, wait=missing)


def _blocked(state: FleetState, worker: Worker, now_s: float) -> tuple[Worker, tuple[Effect, ...]]:
    if now_s < worker.not_before_s:
        return worker, ()
    if worker.avoid and state.snapshot.state == "ok":
        left = elsewhere(state, worker, now_s)
        return left, (Note(worker.name, "worker-moved", left.reason),) if left.phase is worker.phase else ()
    missing = obstacle(state, worker, now_s)
    if missing is not None:
        return waiting(worker, missing), ()
    return begin_run(worker, state.pools[worker.pool], now_s)


def next_deadline_s(state: FleetState, now_s: float) -> float | None:
    """The nearest moment after ``now_s`` at which something happens by itself; None where nothing waits for time."""
    times: list[float] = []
    for worker in state.workers.values():
        if worker.deadline_s is not None:
            times.append(worker.deadline_s)
        if worker.phase in {Phase.BACKOFF, Phase.BLOCKED} and worker.not_before_s > now_s:
            times.append(worker.not_before_s)
        if worker.phase is Phase.RELEASING:
            times.append(worker.since_s + state.terms.release_timeout_s)
    times += [at_s for at_s in departures_s(state.listing, state.workers.values()) if at_s > now_s]
    looks = (next_look_s(roll, state.workers, state.pools[name]) for name, roll in state.rolls.items())
    times += [look_s for look_s in looks if look_s is not None and look_s > now_s]
    return min(times, default=None)


def relisted(state: FleetState, now_s: float, *, listing: Listing | None) -> Outcome:
    """What proxies know has changed."""
    return settle(replace(state, listing=listing), now_s)


def amended(fleet: FleetState, _now_s: float, *, worker: str, exit_: LastExit) -> Outcome:
    """More is known of how a worker's last run ended."""
    known = replace(fleet.workers[worker], last_exit=exit_)
    return replace(fleet, workers={**fleet.workers, worker: known}), ()
