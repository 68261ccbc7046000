"""What an applied fleet changes in the state: new workers, retired ones, new device sets, restarts. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gpuward.config.fleet import Fleet, Pool
from gpuward.policy.fleet import FleetState, Outcome, step, with_worker
from gpuward.policy.life import (
    Event,
    Goal,
    RestartAsked,
    StartAsked,
    StopAsked,
    Worker,
)
from gpuward.policy.plan import Plan
from gpuward.policy.reload import Change, definition


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """First port of a worker's own block, and the port that it serves on (None where it serves nothing)."""

    block: int
    serves_on: int | None


@dataclass(frozen=True, slots=True)
class Applied:
    """A fleet with everything that was worked out about it; ``ports`` by worker."""

    fleet: Fleet
    plan: Plan
    changes: tuple[Change, ...]
    ports: Mapping[str, Ports]


def apply(state: FleetState, applied: Applied, now_s: float) -> Outcome:
    """Put a fleet that fits in the place of the present one.

    A worker that the operator has stopped stays stopped; one that has failed starts again only if its definition
    changed; a worker that is no longer in the fleet is stopped and then forgotten. A pool that is being rolled goes on
    with that if its processes would start as before; otherwise this takes the place of the roll.
    """
    fleet = applied.fleet
    by_worker = {change.worker: change for change in applied.changes}
    rolls = {pool.name: state.rolls[pool.name] for pool in fleet.pools if _rolls_on(state, pool)}
    state = replace(state, pools={**state.pools, **{pool.name: pool for pool in fleet.pools}}, rolls=rolls)
    events: list[tuple[str, Event]] = []
    wanted = [(pool.name, name) for pool in fleet.pools for name in pool.worker_names]
    for pool_name, name in wanted:
        change = by_worker.get(name)
        state = with_worker(state, _placed(state.workers.get(name), pool_name, name, applied))
        if change is not None and change.action == "restart":  # another definition: what it lacked may fit now
            state = with_worker(state, replace(state.workers[name], steps=()))
        event = _event_for(state.workers[name], change)
        if event is not None:
            events.append((name, event))
    names = {name for _, name in wanted}
    for worker in tuple(state.workers.values()):
        if worker.name not in names and not worker.removed:
            state = with_worker(state, replace(worker, removed=True))
            events.append((worker.name, StopAsked("no longer in the fleet")))
    return step(_in_fleet_order(state, [name for _, name in wanted]), events, now_s)


def _rolls_on(state: FleetState, pool: Pool) -> bool:
    return pool.name in state.rolls and definition(state.pools[pool.name]) == definition(pool)


def _placed(worker: Worker | None, pool: str, name: str, applied: Applied) -> Worker:
    """The worker with what the fleet gives it. One that is new is not part of the fleet yet (``removed``)."""
    planned, ports = applied.plan.devices(name), applied.ports[name]
    if worker is None:
        worker = Worker(name=name, pool=pool, index=int(name.rpartition("/")[2]), removed=True)
    devices = planned.gpu_uuids if planned is not None else ()
    return replace(worker, device_uuids=devices, port_block=ports.block, port=ports.serves_on)


def _event_for(worker: Worker, change: Change | None) -> Event | None:
    if worker.removed:
        return StartAsked()
    if change is None or change.action not in {"restart", "move"} or worker.goal is Goal.DOWN:
        return None
    return RestartAsked(f"{change.reason}")


def _in_fleet_order(state: FleetState, names: list[str]) -> FleetState:
    """Order workers as the file does (listings show them so); clear the mark of those that are wanted."""
    ordered = {name: replace(state.workers[name], removed=False) for name in names}
    rest = {name: worker for name, worker in state.workers.items() if name not in ordered}
    return replace(state, workers={**ordered, **rest})
