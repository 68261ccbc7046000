"""Who is listed for proxies, and when a worker that leaves the list may be stopped. Pure; writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from gpuward.policy.reasons import Wait
from gpuward.policy.worker.life import Phase, Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What whoever reads the endpoint files may know.

    ``told``: workers that may still be sent requests; None until this daemon has written the files once.
    ``left_s``: when a worker was known to have left them, monotonic. ``settle_s``: how long proxies may then take.
    """

    settle_s: float
    told: frozenset[str] | None = None
    left_s: Mapping[str, float] = field(default_factory=dict)

    def telling(self, ready: Iterable[str]) -> Listing:
        """The listing while the files are written with these workers: who was in them may be sent requests still."""
        return self if self.told is None else replace(self, told=self.told | frozenset(ready))

    def as_told(self, ready: Iterable[str], workers: Iterable[str], now_s: float) -> Listing:
        """The listing once the files have these workers and who wanted to know has been told."""
        told = frozenset(ready)
        gone = (frozenset(workers) if self.told is None else self.told) - told
        left_s = {name: at_s for name, at_s in self.left_s.items() if name not in told}
        return replace(self, told=told, left_s=left_s | dict.fromkeys(gone, now_s))

    def settled_s(self, worker: str) -> float | None:
        """When a worker may be stopped; None where it may still be in the files."""
        if self.told is None or worker in self.told:
            return None
        left_s = self.left_s.get(worker)
        return 0.0 if left_s is None else left_s + self.settle_s


def listed(workers: Iterable[Worker], pools: Iterable[str]) -> dict[str, tuple[Worker, ...]]:
    """The ready workers of every pool, by index; a pool without any is there too."""
    found: dict[str, list[Worker]] = {pool: [] for pool in pools}
    for worker in workers:
        if worker.phase is Phase.READY:
            found.setdefault(worker.pool, []).append(worker)
    return {pool: tuple(sorted(members, key=lambda worker: worker.index)) for pool, members in found.items()}


def departure(listing: Listing | None, worker: Worker, now_s: float) -> Wait | None:
    """What a worker waits for before its SIGTERM, so that no proxy sends it a request then."""
    if listing is None or worker.ready_since_s is None:
        return None
    settled_s = listing.settled_s(worker.name)
    if settled_s is None:
        return Wait(kind="endpoints", text="is being taken out of the endpoints")
    if now_s < settled_s:
        text = f"is out of the endpoints; SIGTERM follows after settle-s = {listing.settle_s:g} s"
        return Wait(kind="endpoints", text=text)
    return None


def departures_s(listing: Listing | None, workers: Iterable[Worker]) -> tuple[float, ...]:
    """When draining workers will have been out of the endpoints for long enough."""
    if listing is None:
        return ()
    settled = (listing.settled_s(worker.name) for worker in workers if worker.phase is Phase.DRAINING)
    return tuple(at_s for at_s in settled if at_s)
