"""Commands under way, for those who wait for them. On the loop's thread only; what became of one says `policy`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from gpuward.policy.fleet import FleetState
from gpuward.policy.operations import Operation, Target, Verb, advance, give_way

OPERATIONS_KEPT = 256


@dataclass(slots=True)
class Operations:
    """Commands under way and those that ended last, by id; ``changed`` wakes who waits for news."""

    by_id: dict[str, Operation] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _count: int = 0

    def begin(self, verb: Verb, targets: Iterable[Target]) -> Operation:
        """Register a command; earlier ones on the same workers join it or give way to it."""
        self._count += 1
        operation = Operation(id=f"{verb}-{self._count}", verb=verb, targets=tuple(targets))
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
        for operation in tuple(self.by_id.values()):
            if operation.state == "running":
                later = advance(operation, state.workers, state.rolls)
                moved = moved or later is not operation
                self.by_id[operation.id] = later
        if moved:
            self.changed.set()
            self.changed = asyncio.Event()
