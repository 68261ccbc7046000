"""Commands under way, for those who wait for them. On the loop's thread only; what became of one says `policy`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gpuward.host.crash_points import around
from gpuward.host.records import VERSION, Records, StoredOperations
from gpuward.policy.fleet.operations import Operation, Target, Verb, advance, give_way
from gpuward.policy.fleet.preflight import kept_down_by_a_person
from gpuward.policy.fleet.step import FleetState

OPERATIONS_KEPT = 256
ENDED_KEPT_ON_DISK = 16
"""Of those that have ended: for who asks about one only after a new daemon life has begun."""


@dataclass(slots=True)
class Operations:
    """Commands under way and those that ended last, by id; ``changed`` wakes who waits for news.

    They are kept in ``records`` so that who waits goes on waiting over the end of this daemon life; ``notice`` is told
    why they are not, or nothing where they are.
    """

    records: Records
    notice: Callable[[str], None]
    by_id: dict[str, Operation] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _count: int = 0
    _kept: tuple[tuple[str, str], ...] = ()

    def resume(self) -> None:
        """Go on with what an earlier life knew."""
        stored = self.records.load_operations()
        self._count = stored.count
        self.by_id = {operation.id: operation for operation in stored.operations}

    def begin(self, verb: Verb, targets: Iterable[Target], rolling: Iterable[str] = ()) -> Operation:
        """Register a command; earlier ones on the same workers join it or give way to it.

        ``rolling``: pools that it changes worker by worker.
        """
        self._count += 1
        name = f"{verb}-{self._count}"
        operation = Operation(id=name, verb=verb, targets=tuple(targets), rolling=tuple(rolling))
        for other in tuple(self.by_id.values()):
            self.by_id[other.id] = give_way(other, operation)
        self.by_id[operation.id] = operation
        for old in list(self.by_id)[:-OPERATIONS_KEPT]:
            if self.by_id[old].state != "running":
                del self.by_id[old]
        return operation

    def look(self, state: FleetState) -> None:
        """Look at the workers again and wake who waits."""
        moved = False
        kept_down = kept_down_by_a_person(state, state.workers.values())
        for operation in tuple(self.by_id.values()):
            if operation.state == "running":
                later = advance(operation, state.workers, state.rolls, state.stopped_rolls, kept_down)
                moved = moved or later is not operation
                self.by_id[operation.id] = later
        self._keep()
        if moved:
            self.changed.set()
            self.changed = asyncio.Event()

    def _keep(self) -> None:
        kept = tuple((operation.id, operation.state) for operation in self.by_id.values())
        if kept == self._kept:
            return
        self._kept = kept
        ended = [operation for operation in self.by_id.values() if operation.state != "running"]
        dropped = {operation.id for operation in ended[:-ENDED_KEPT_ON_DISK]}
        operations = tuple(operation for operation in self.by_id.values() if operation.id not in dropped)
        try:
            with around("save operations"):
                stored = StoredOperations(version=VERSION, count=self._count, operations=operations)
                self.records.save_operations(stored)
        except OSError as error:
            self.notice(f"commands under way cannot be saved: {error.strerror}; this daemon's end would lose them")
        else:
            self.notice("")
