"""The GPUs of one host while a fleet is being placed on them: who has which, and how much of each is claimed.

Working state of one call of `placement.place`; nothing keeps it afterwards. It never decides who comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gpuward.policy.gpus.inventory import Gpu
from gpuward.policy.gpus.modes import for_one_process

ROUNDING = 1e-9
"""Ratios such as 0.7 + 0.2 + 0.1 add up to a hair more than 1.0 in binary floating point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimant:
    """A worker that wants ``count`` GPUs and claims ``ratio`` of the total memory of each."""

    worker: str
    pool: str
    count: int
    ratio: float
    share: bool


@dataclass(slots=True, eq=False)
class Seat:
    """One GPU and those who have it; ``claimed_ratio`` is the sum of their claims."""

    gpu: Gpu
    holders: list[Claimant] = field(default_factory=list)
    claimed_ratio: float = 0.0

    def rival(self, claimant: Claimant) -> Claimant | None:
        """Return the first holder that cannot have this GPU beside ``claimant``: one of the two does not share."""
        return next((holder for holder in self.holders if not (holder.share and claimant.share)), None)


class Board:
    """Seats by UUID, in inventory order, and the free ones among them as runs of neighbours of one kind."""

    def __init__(self, gpus: Sequence[Gpu], limit_ratio: float) -> None:
        self.limit_ratio = limit_ratio
        self.seats = {gpu.uuid: Seat(gpu) for gpu in gpus}
        self._shared: list[Seat] = []
        self._runs: list[list[Seat]] | None = None

    def has_room(self, seat: Seat, claimant: Claimant) -> bool:
        """Whether the sum of claims stays within the limit; a GPU of one's own has room for any claim."""
        return not claimant.share or seat.claimed_ratio + claimant.ratio <= self.limit_ratio + ROUNDING

    def keeps(self, seat: Seat, claimant: Claimant) -> bool:
        """Whether ``claimant``, which has this GPU, may keep it."""
        return self.has_room(seat, claimant) and seat.rival(claimant) is None

    def accepts(self, seat: Seat, claimant: Claimant) -> bool:
        """Whether ``claimant`` may have this GPU."""
        return self.keeps(seat, claimant) and not (claimant.share and for_one_process(seat.gpu))

    def take(self, claimant: Claimant, seats: Sequence[Seat]) -> tuple[Gpu, ...]:
        """Give these GPUs to ``claimant``, whether or not they accept it."""
        for seat in seats:
            if claimant.share and not seat.holders:
                self._shared.append(seat)
            seat.holders.append(claimant)
            seat.claimed_ratio += claimant.ratio
        self._forget_taken(seats)
        return tuple(seat.gpu for seat in seats)

    def free(self) -> list[Seat]:
        """Seats that nobody has, in inventory order."""
        return [seat for run in self._free_runs() for seat in run]

    def free_count(self) -> int:
        """How many seats nobody has."""
        return sum(map(len, self._free_runs()))

    def adjacent_free(self, count: int) -> list[Seat]:
        """Return the first ``count`` free neighbours of one kind, or nothing."""
        for run in self._free_runs():
            if len(run) >= count:
                return run[:count]
        return []

    def scattered_free(self, count: int) -> list[Seat]:
        """Return the first ``count`` free GPUs of one kind, neighbours or not, or nothing."""
        return first_of_a_kind(self.free(), count)

    def shareable(self, claimant: Claimant) -> list[Seat]:
        """Return GPUs of one kind for a sharing worker: shared ones that have room, then free ones, or nothing."""
        shared = [seat for seat in self._shared if self.accepts(seat, claimant)]
        found = first_of_a_kind(shared, claimant.count)
        if found or claimant.ratio > self.limit_ratio + ROUNDING:
            return found
        return first_of_a_kind(shared + [seat for seat in self.free() if self.accepts(seat, claimant)], claimant.count)

    def _free_runs(self) -> list[list[Seat]]:
        if self._runs is None:
            self._runs = runs_of([seat for seat in self.seats.values() if not seat.holders])
        return self._runs

    def _forget_taken(self, seats: Sequence[Seat]) -> None:
        """Keep the runs true: cutting the head off one is the common case, anything else computes them anew."""
        if self._runs is None:
            return
        for position, run in enumerate(self._runs):
            if run[: len(seats)] == list(seats):
                del run[: len(seats)]
                if not run:
                    del self._runs[position]
                return
        self._runs = None


def kind_of(gpu: Gpu) -> tuple[str, int | None]:
    """GPUs of one kind, model and memory, may serve one worker together."""
    return (gpu.name, gpu.total_bytes)


def runs_of(seats: Sequence[Seat]) -> list[list[Seat]]:
    """Cut ``seats`` (in inventory order) into runs of consecutive indices and one kind."""
    runs: list[list[Seat]] = []
    for seat in seats:
        last = runs[-1][-1].gpu if runs else None
        if last is not None and last.index + 1 == seat.gpu.index and kind_of(last) == kind_of(seat.gpu):
            runs[-1].append(seat)
        else:
            runs.append([seat])
    return runs


def first_of_a_kind(seats: Sequence[Seat], count: int) -> list[Seat]:
    """Return the first ``count`` seats of the first kind that has so many, or nothing."""
    by_kind: dict[tuple[str, int | None], list[Seat]] = {}
    for seat in seats:
        found = by_kind.setdefault(kind_of(seat.gpu), [])
        found.append(seat)
        if len(found) == count:
            return found
    return []
