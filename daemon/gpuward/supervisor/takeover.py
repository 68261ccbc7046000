"""The first moments of a daemon: what an earlier one left is gathered, supervised, and brought in line with the fleet.

Nothing that runs is refused: without a fleet on record, the pools that the runs were started from are the fleet.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from gpuward.config.fleet import Pool
from gpuward.host.found_runs import found_runs
from gpuward.host.processes import boot_id
from gpuward.host.run_numbers import used_runs
from gpuward.policy.fleet.resume import after_used, resumed, take_over
from gpuward.policy.worker.definition import as_digested_now
from gpuward.policy.worker.life import Phase
from gpuward.supervisor.applied_fleet import Fleets
from gpuward.supervisor.equipment import Equipment
from gpuward.supervisor.loop import Supervisor


class Takeover:
    """One daemon's taking over; `begin` once, `settle` when the fleet is known and again until it fits the host."""

    def __init__(self, equipment: Equipment, supervisor: Supervisor, fleets: Fleets) -> None:
        self._equipment = equipment
        self._supervisor = supervisor
        self._fleets = fleets
        self._started_as: Mapping[str, Pool] = {}
        self.settled = False
        """Whether the workers are in line with the applied fleet."""

    def begin(self) -> None:
        """Supervise what runs; from here on every living run is watched."""
        self._fleets.resume()
        stored, records, now_s = self._fleets.stored, self._equipment.records, time.monotonic()
        pools = {pool.name: pool for pool in stored.fleet.pools} if stored is not None else {}
        this_boot = boot_id()
        recorded = {
            name: resumed(record.worker, same_boot=record.boot_id == this_boot, now_s=now_s)
            for name, record in records.load_workers().items()
        }
        found = found_runs(self._equipment.runs)
        taken = take_over(pools, recorded, found, records.goals(), now_s)
        self._started_as = {run.worker: run.pool for run in found if run.pool is not None}
        numbered = after_used(taken.workers, used := self._used_runs())
        workers = {name: as_digested_now(one, taken.pools[one.pool]) for name, one in numbered.items()}
        self._supervisor.adopt(taken.pools, workers, stored.rolls if stored is not None else {}, used)
        for note in taken.notes:
            self._supervisor.journal.note(note.kind, note.reason, worker=note.worker, level="warning")
        self._tell(sum(worker.alive for worker in taken.workers.values()), time.monotonic() - now_s)

    def _used_runs(self) -> dict[str, int]:
        equipment = self._equipment
        return used_runs((equipment.records.root / "history", equipment.logs, equipment.runs.root))

    def _tell(self, expected: int, took_s: float) -> None:
        if expected:
            living = len(self._supervisor.runner.handles)
            ended = "; the others have ended" if living < expected else ""
            reason = f"took over {living} of {expected} runs on record in {took_s * 1000:.0f} ms{ended}"
            self._supervisor.journal.note("adopted", reason)

    @property
    def supervises(self) -> bool:
        """Whether there are runs that a refusal to go on would leave alone."""
        return any(worker.alive for worker in self._supervisor.state.workers.values())

    def go_on_without_a_fleet(self, why: str) -> None:
        """Make a fleet of what runs: nothing else is known of what the operator wants."""
        state = self._supervisor.state
        living = [worker for worker in state.workers.values() if worker.phase is not Phase.STOPPED]
        sizes = {name: max((one.index + 1 for one in living if one.pool == name), default=0) for name in state.pools}
        self._fleets.reconstruct({name: size for name, size in sizes.items() if size}, why)

    def settle(self) -> None:
        """Bring the workers in line with the fleet; roll those whose runs are not what it asks for."""
        self.settled = self._fleets.settle()
        if self.settled:
            self._fleets.roll_outdated(self._started_as)
            self._started_as = {}
