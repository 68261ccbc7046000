"""What is looked at before a command stops anything: would it come back, and who would go without. Changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from gpuward.config.fleet import Pool
from gpuward.control.server import Refusal
from gpuward.policy.fleet.apply import rolled_pools
from gpuward.policy.fleet.foresight import Foresight, foresee
from gpuward.policy.fleet.preflight import WouldNotReturn, all_that_would_not_return, placed_as, would_not_return
from gpuward.policy.fleet.retiring import nobody_left
from gpuward.policy.worker.life import Phase, Worker
from gpuward.supervisor.equipment import Equipment
from gpuward.supervisor.loop import Supervisor
from gpuward.supervisor.planning import Proposal
from gpuward.supervisor.starting import launch_problem

LIVE = frozenset({Phase.STARTING, Phase.READY})


class Beforehand:
    """Looks ahead for one daemon."""

    def __init__(self, equipment: Equipment, supervisor: Supervisor) -> None:
        self._equipment = equipment
        self._supervisor = supervisor

    def of_workers(self, op: str, workers: Iterable[Worker], rolling: Collection[str] = ()) -> Foresight:
        """What stop, restart or roll of these workers takes away."""
        state, names = self._supervisor.state, [worker.name for worker in workers]
        if op == "stop":
            return foresee(state.workers, state.pools, stopped=names)
        return foresee(state.workers, state.pools, restarted=() if op == "start" else names, rolling=rolling)

    def of_proposal(self, proposal: Proposal) -> Foresight:
        """What applying a fleet takes away."""
        state = self._supervisor.state
        named = proposal.fleet.pools if proposal.fleet is not None else ()
        rolling = rolled_pools(state, named, proposal.plan, proposal.changes)
        pools = {**state.pools, **{pool.name: pool for pool in named}}
        by_action = {
            action: [change.worker for change in proposal.changes if change.action in kinds]
            for action, kinds in (("stop", {"stop"}), ("restart", {"restart", "move"}))
        }
        return foresee(state.workers, pools, stopped=by_action["stop"], restarted=by_action["restart"], rolling=rolling)

    def check_workers(self, workers: Iterable[Worker], pools: Mapping[str, Pool] | None = None) -> None:
        """Refuse to restart living workers that would not come back."""
        refuse(self._would_not_return(tuple(workers), pools or self._supervisor.state.pools))

    def check_proposal(self, proposal: Proposal) -> None:
        """Refuse a fleet that restarts living workers which would not come back."""
        if proposal.fleet is None:
            return
        state = self._supervisor.state
        touched = {change.worker for change in proposal.changes if change.action in {"start", "restart", "move"}}
        workers = []
        for name in touched & {*state.workers}:
            planned = proposal.plan.devices(name)
            workers.append(placed_as(state.workers[name], planned.gpu_uuids if planned is not None else ()))
        refuse(self._would_not_return(tuple(workers), {pool.name: pool for pool in proposal.fleet.pools}))
        leaving = {change.worker for change in proposal.changes if change.action == "stop"}
        found = (would_not_return(state, worker, state.pools[worker.pool]) for worker in state.workers.values())
        obstacles = {one.worker: one for one in found if one is not None}
        refuse_to_strand(tuple(nobody_left(state.workers, leaving, obstacles)))

    def _would_not_return(self, workers: tuple[Worker, ...], pools: Mapping[str, Pool]) -> tuple[WouldNotReturn, ...]:
        state = self._supervisor.state
        ours = {worker.port for worker in state.workers.values() if worker.alive}
        launch = {
            worker.name: launch_problem(self._equipment, worker, pools[worker.pool], ours)
            for worker in workers
            if worker.phase in LIVE
        }
        return all_that_would_not_return(replace(state, pools={**state.pools, **pools}), workers, pools, launch)


def refuse(found: tuple[WouldNotReturn, ...]) -> None:
    """Raise the refusal that these give, if there are any."""
    if not found:
        return
    shown = "; ".join(str(one) for one in found[:4]) + (f"; and {len(found) - 4} more" if len(found) > 4 else "")
    details = {
        "problems": [{"worker": one.worker, "code": "would-not-come-back", "message": one.wait.text} for one in found]
    }
    raise Refusal("would-not-come-back", f"nothing was stopped: {shown}; --force goes on all the same", details)


def refuse_to_strand(found: tuple[tuple[str, str], ...]) -> None:
    """Raise the refusal to take the only ready workers of pools away, if there are any."""
    if not found:
        return
    problems = [{"worker": name, "code": "would-not-come-back", "message": why} for name, why in found]
    told = "; ".join(f"{name} is the only one that serves: {why}" for name, why in found)
    message = f"nothing was stopped: {told}; --force goes on all the same"
    raise Refusal("would-not-come-back", message, {"problems": problems})


def foresight_document(foresight: Foresight) -> dict[str, Any]:
    """What a command would take away."""
    return asdict(foresight)
