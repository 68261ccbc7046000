"""What an applied fleet changes in the state: new workers, retired ones, new device sets, restarts. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from msgspec import structs

from gpuward.config.fleet import Fleet, Pool, Remark
from gpuward.policy.fleet.changes import Change
from gpuward.policy.fleet.roll import Roll
from gpuward.policy.fleet.step import FleetState, Outcome, departure_of, step, with_roll, with_worker
from gpuward.policy.placement.plan import Plan
from gpuward.policy.reasons import By
from gpuward.policy.worker.definition import definition
from gpuward.policy.worker.life import (
    Event,
    Goal,
    Phase,
    RestartAsked,
    StartAsked,
    Worker,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """First port of a worker's own block, and the port that it serves on (None where it serves nothing)."""

    block: int
    serves_on: int | None


@dataclass(frozen=True, slots=True)
class Applied:
    """A fleet with everything that was worked out about it; ``ports`` by worker.

    ``force``: what would not come back, and the last ready worker of a pool, are not spared. ``by``: who asked.
    """

    fleet: Fleet
    plan: Plan
    changes: tuple[Change, ...]
    ports: Mapping[str, Ports]
    force: bool = False
    by: By | None = None


def rolled_pools(state: FleetState, pools: Iterable[Pool], plan: Plan, changes: Iterable[Change]) -> tuple[str, ...]:
    """Pools that such changes reach worker by worker: one of theirs is ready, and nobody moves onto a GPU in use.

    Where workers of the fleet change places all have to leave first: none could come while the other is there.
    """
    touched = [change for change in changes if change.action in {"restart", "move"}]
    names = []
    for pool in pools:
        mine = [state.workers[one.worker] for one in touched if one.pool == pool.name and one.worker in state.workers]
        serving = any(one.phase is Phase.READY and one.goal is Goal.UP for one in state.members(pool.name))
        if mine and serving and pool.update == "rolling" and not _moves_onto_others(state, mine, plan):
            names.append(pool.name)
    return tuple(names)


def _moves_onto_others(state: FleetState, workers: Iterable[Worker], plan: Plan) -> bool:
    kept = {one.name for one in plan.workers}
    return any(_goes_where_others_are(state, one, {*_devices(plan, one.name)}, kept) for one in workers)


def _goes_where_others_are(state: FleetState, worker: Worker, uuids: set[str], kept: Collection[str]) -> bool:
    goes_to = uuids - {*worker.run_uuids}
    return any(
        other.alive and other.name in kept and other.name != worker.name and not goes_to.isdisjoint(other.run_uuids)
        for other in state.workers.values()
    )


def apply(state: FleetState, applied: Applied, now_s: float) -> Outcome:
    """Put a fleet that fits in the place of the present one.

    A worker that the operator has stopped stays stopped; one that has failed starts again only if its definition
    changed; a worker that is no longer in the fleet is stopped, once one that stays serves, and then forgotten. Ready
    workers whose definition changes are rolled, unless their pool says otherwise. A pool that is being rolled goes on
    with that if its processes would start as before; otherwise this takes the place of the roll.
    """
    fleet = applied.fleet
    by_worker = {change.worker: change for change in applied.changes}
    in_turn = {
        pool.name: _roll_of(state, pool, applied)
        for pool in fleet.pools
        if pool.name in rolled_pools(state, fleet.pools, applied.plan, applied.changes)
    }
    rolls = {pool.name: state.rolls[pool.name] for pool in fleet.pools if _rolls_on(state, pool)}
    state = replace(state, pools={**state.pools, **{pool.name: pool for pool in fleet.pools}}, rolls=rolls)
    events: list[tuple[str, Event]] = []
    wanted = [(pool.name, name) for pool in fleet.pools for name in pool.worker_names]
    for pool_name, name in wanted:
        change = by_worker.get(name)
        state = with_worker(state, _placed(state, pool_name, name, applied))
        if pool_name in in_turn and name in in_turn[pool_name].left:
            continue
        # another definition: what it lacked may fit now
        if change is not None and (change.action == "restart" or change.stopped):
            state = with_worker(state, replace(state.workers[name], steps=()))
        event = _event_for(state.workers[name], change, applied.by)
        if event is not None:
            events.append((name, event))
    for pool_name, roll in in_turn.items():
        state = with_roll(state, pool_name, roll)
    names, in_fleet = {name for _, name in wanted}, {pool.name for pool in fleet.pools}
    for worker in tuple(state.workers.values()):
        if worker.name not in names and not worker.removed:
            leaves = replace(
                worker,
                removed=True,
                leaves_as="scale" if worker.pool in in_fleet else "left-fleet",
                leaves_by=applied.by,
            )
            state = with_worker(state, leaves)
            events += [(worker.name, departure_of(leaves))] if applied.force or worker.goal is Goal.DOWN else []
    return step(_in_fleet_order(state, [name for _, name in wanted]), events, now_s)


def _rolls_on(state: FleetState, pool: Pool) -> bool:
    return pool.name in state.rolls and definition(state.pools[pool.name]) == definition(pool)


def _roll_of(state: FleetState, pool: Pool, applied: Applied) -> Roll:
    """The roll of a pool to what the fleet says of it; where it is being rolled, back to where that would go back."""
    changes = {one.worker: one for one in applied.changes if one.pool == pool.name and one.action != "keep"}
    touched = {name for name, change in changes.items() if change.action in {"restart", "move"}}
    left = [one for one in state.members(pool.name) if one.name in touched and one.goal is Goal.UP and not one.removed]
    before = state.rolls.get(pool.name)
    ran = before.earlier if before is not None and before.earlier is not None else state.pools[pool.name]
    earlier = of_the_same_size(ran, pool)
    moved = {one.name for one in left if _devices(applied.plan, one.name) != one.run_uuids}
    keys = dict.fromkeys(key for one in left for key in changes[one.name].keys)
    new = [name for name, change in changes.items() if change.action == "start"]
    goes_on = before if before is not None and definition(state.pools[pool.name]) == definition(pool) else None
    to_come = (*goes_on.left, *goes_on.under_way) if goes_on is not None else ()
    return Roll(
        left=tuple(one.name for one in state.members(pool.name) if one in left or one.name in to_come),
        turns={name: state.workers[name].run + 1 if name in state.workers else 1 for name in new},
        earlier=earlier if definition(earlier) != definition(pool) else None,
        steps={**(before.steps if before is not None else {}), **{one.name: one.steps for one in left if one.steps}},
        places={one.name: one.device_uuids for one in left if one.name in moved},
        force=applied.force,
        asked=f"{', '.join(keys)} changed" if keys else "its GPUs change",
        by=applied.by,
    )


def of_the_same_size(earlier: Pool, pool: Pool) -> Pool:
    """What a pool goes back to: its earlier definition, with as many workers as it has now."""
    if earlier.workers == pool.workers:
        return earlier
    return structs.replace(earlier, workers=pool.workers, gpus=pool.gpus, first_gpu=pool.first_gpu)


def roll_outdated(
    state: FleetState, reasons: Mapping[str, str], started_as: Mapping[str, Pool], now_s: float
) -> Outcome:
    """Restart runs that are not what the fleet says, for ``reasons`` by worker: in turn where their pools say so.

    ``started_as``: the pool that a run was started from, where that is known: what it goes back to.
    """
    events: list[tuple[str, Event]] = []
    by_pool: dict[str, list[Worker]] = {}
    for name in reasons:
        by_pool.setdefault(state.workers[name].pool, []).append(state.workers[name])
    for pool_name, workers in by_pool.items():
        pool = state.pools[pool_name]
        kept = {worker.name for worker in state.workers.values() if not worker.removed}
        if pool.update == "all" or any(
            _goes_where_others_are(state, one, {*one.device_uuids}, kept) for one in workers
        ):
            events += [(worker.name, RestartAsked(reasons[worker.name], "definition")) for worker in workers]
            continue
        ran = {definition(known): known for one in workers if (known := started_as.get(one.name)) and not one.steps}
        known = next(iter(ran.values())) if len(ran) == 1 else None
        earlier = of_the_same_size(known, pool) if known is not None and definition(known) != definition(pool) else None
        left = tuple(worker.name for worker in workers)
        places = {one.name: one.run_uuids for one in workers if one.run_uuids != one.device_uuids}
        roll = Roll(left=left, earlier=earlier, places=places, asked=reasons[left[0]])
        state = with_roll(state, pool_name, roll)
    return step(state, events, now_s)


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


def _devices(plan: Plan, name: str) -> tuple[str, ...]:
    planned = plan.devices(name)
    return planned.gpu_uuids if planned is not None else ()


def _placed(state: FleetState, pool: str, name: str, applied: Applied) -> Worker:
    """The worker with what the fleet gives it. One that is new is not part of the fleet yet (``removed``).

    Who runs keeps the port that it serves on until its next run.
    """
    planned, ports = applied.plan.devices(name), applied.ports[name]
    worker = state.workers.get(name)
    if worker is None:
        index, run = int(name.rpartition("/")[2]), state.used_runs.get(name, 0)
        worker = Worker(name=name, pool=pool, index=index, run=run, removed=True)
    devices = planned.gpu_uuids if planned is not None else ()
    port = worker.port if worker.alive and worker.port is not None else ports.serves_on
    return replace(worker, device_uuids=devices, port_block=ports.block, port=port)


def _event_for(worker: Worker, change: Change | None, by: By | None) -> Event | None:
    if worker.removed:
        return StartAsked(by)
    if change is None or change.action not in {"restart", "move"} or worker.goal is Goal.DOWN:
        return None
    return RestartAsked(change.reason, "move" if change.action == "move" else "definition", by)


def _in_fleet_order(state: FleetState, names: list[str]) -> FleetState:
    """Order workers as the file does (listings show them so); clear the mark of those that are wanted."""
    ordered = {
        name: replace(state.workers[name], removed=False, leaves_as="left-fleet", leaves_by=None) for name in names
    }
    rest = {name: worker for name, worker in state.workers.items() if name not in ordered}
    return replace(state, workers={**ordered, **rest})
