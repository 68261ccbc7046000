"""Placement: which worker gets which GPUs, or a refusal that shows the sum. It asks nothing of the host.

Order: pools that name their GPUs (``gpus``, ``first-gpu``), then workers that already have a device set and may
keep it, then the rest in file order on the first free neighbours of one kind. Never half a fleet: with any
problem no worker is placed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from gpuward.config.fleet import Pool, Remark
from gpuward.policy.gpus.inventory import Gpu, Snapshot
from gpuward.policy.gpus.memory import claim_bytes
from gpuward.policy.placement.board import Board, Claimant, Seat
from gpuward.policy.placement.named_gpus import Host, Named, host_of, named_gpus
from gpuward.policy.placement.plan import Plan, PlannedWorker
from gpuward.policy.placement.refusals import (
    claims_exceed,
    gpu_conflict,
    inventory_unavailable,
    no_common_kind,
    no_shared_room,
    one_process_gpus,
    parallel_size_mismatch,
    too_few_gpus,
)
from gpuward.policy.placement.warnings import placement_warnings

_NOTHING: Mapping[str, tuple[str, ...]] = MappingProxyType({})
_NOTHING_CLOSED: Mapping[str, str] = MappingProxyType({})


def place(
    pools: Sequence[Pool],
    snapshot: Snapshot,
    *,
    excluded: Sequence[int | str] = (),
    closed: Mapping[str, str] = _NOTHING_CLOSED,
    claims_per_gpu: float = 1.0,
    current: Mapping[str, tuple[str, ...]] = _NOTHING,
) -> Plan:
    """Place every worker of ``pools``, or none and say all reasons.

    ``excluded`` names GPUs by index or UUID, ``closed`` by UUID with the reason. ``claims_per_gpu`` is the largest
    sum of claims on a shared GPU, a ratio of its memory. ``current`` maps worker names to the UUIDs they have, which
    they keep where they can.
    """
    host = host_of(snapshot, excluded, closed)
    problems = [remark for pool in pools if (remark := parallel_size_mismatch(pool)) is not None]
    if snapshot.state != "ok" and any(pool.workers and pool.device_count for pool in pools):
        return _plan(pools, host, Board((), claims_per_gpu), {}, [inventory_unavailable(snapshot), *problems])
    placing = _Placing(pools, host, Board(host.usable, claims_per_gpu), current)
    placing.seat_named()
    placing.keep()
    placing.fill()
    return _plan(pools, host, placing.board, placing.sets, [*problems, *placing.problems])


class _Placing:
    """One placement under way: ``sets`` grows step by step, ``problems`` collects what cannot be had."""

    def __init__(self, pools: Sequence[Pool], host: Host, board: Board, current: Mapping[str, tuple[str, ...]]) -> None:
        self.pools = pools
        self.host = host
        self.board = board
        self.current = current
        self.sets: dict[str, tuple[Gpu, ...]] = {}
        self.problems: list[Remark] = []

    def seat_named(self) -> None:
        """Place the pools that name their GPUs."""
        for pool in self.pools:
            if not _names_gpus(pool):
                continue
            named = named_gpus(pool, self.host)
            self.problems += named.problems
            if not named.problems:
                self._seat(pool, named)

    def keep(self) -> None:
        """Let workers of the other pools keep what they have, where it is of the right size, usable and not taken."""
        for pool in self.pools:
            if _names_gpus(pool):
                continue
            for name in pool.worker_names:
                claimant = _claimant(pool, name)
                seats = self._kept(claimant)
                if seats:
                    self.sets[name] = self.board.take(claimant, seats)

    def fill(self) -> None:
        """Give the remaining workers free GPUs, in file order."""
        for pool in self.pools:
            if _names_gpus(pool) or not pool.device_count:
                continue
            missing = [_claimant(pool, name) for name in pool.worker_names if name not in self.sets]
            if pool.share:
                self._fill_shared(pool, missing)
            else:
                self._fill_exclusive(pool, missing)

    def _kept(self, claimant: Claimant) -> list[Seat]:
        """Seats that the worker has now, where it may keep them all."""
        uuids = self.current.get(claimant.worker, ())
        seats = [self.board.seats[uuid] for uuid in uuids if uuid in self.board.seats]
        complete = len(seats) == len(uuids) == claimant.count
        return seats if complete and all(self.board.keeps(seat, claimant) for seat in seats) else []

    def _seat(self, pool: Pool, named: Named) -> None:
        seats = [self.board.seats[gpu.uuid] for gpu in named.gpus]
        anyone = _claimant(pool, pool.name)
        rivals = [(seat, rival) for seat in seats if (rival := seat.rival(anyone)) is not None]
        if rivals and pool.workers:
            self.problems.append(gpu_conflict(pool, named, rivals))
            return
        sharing_list = pool.share and bool(pool.gpus)
        for position, name in enumerate(pool.worker_names):
            claimant = _claimant(pool, name)
            own = seats if sharing_list else seats[position * claimant.count : (position + 1) * claimant.count]
            kept = [seat for seat in self._kept(claimant) if seat in own]
            roomy = [seat for seat in own if self.board.has_room(seat, claimant)][: claimant.count]
            if len(roomy) < claimant.count:
                self.problems.append(claims_exceed(pool, named, own, self.board.limit_ratio))
                return
            if not kept and not all(self.board.accepts(seat, claimant) for seat in roomy):
                self.problems.append(one_process_gpus(pool, named, roomy))
                return
            self.sets[name] = self.board.take(claimant, kept if sharing_list and len(kept) == len(roomy) else roomy)

    def _fill_exclusive(self, pool: Pool, missing: Sequence[Claimant]) -> None:
        free = self.board.free_count()
        if len(missing) * pool.device_count > free:
            kept = (pool.workers - len(missing)) * pool.device_count
            self.problems.append(too_few_gpus(pool, self.pools, self.host, free + kept))
            return
        for claimant in missing:
            seats = self.board.adjacent_free(claimant.count) or self.board.scattered_free(claimant.count)
            if not seats:
                self.problems.append(no_common_kind(pool, self.board.free()))
                return
            self.sets[claimant.worker] = self.board.take(claimant, seats)

    def _fill_shared(self, pool: Pool, missing: Sequence[Claimant]) -> None:
        for placed, claimant in enumerate(missing, start=pool.workers - len(missing)):
            seats = self.board.shareable(claimant)
            if not seats:
                self.problems.append(no_shared_room(pool, self.host, self.board.limit_ratio, placed))
                return
            self.sets[claimant.worker] = self.board.take(claimant, seats)


def _plan(
    pools: Sequence[Pool], host: Host, board: Board, sets: Mapping[str, tuple[Gpu, ...]], problems: Sequence[Remark]
) -> Plan:
    workers = (
        ()
        if problems
        else tuple(_planned(pool, name, sets.get(name, ())) for pool in pools for name in pool.worker_names)
    )
    return Plan(
        workers=workers,
        problems=tuple(problems),
        warnings=placement_warnings(pools, host, workers),
        gpus_needed=_gpus_needed(pools, board, complete=not problems),
        gpus_available=len(host.usable),
    )


def _planned(pool: Pool, name: str, gpus: tuple[Gpu, ...]) -> PlannedWorker:
    """In a set of mixed kinds (only an operator can ask for one) the claim is that of the smallest GPU."""
    claims = [claim for gpu in gpus if (claim := claim_bytes(pool, gpu)) is not None]
    return PlannedWorker(
        name=name,
        pool=pool.name,
        gpus=tuple(gpu.index for gpu in gpus),
        gpu_uuids=tuple(gpu.uuid for gpu in gpus),
        claim_bytes=min(claims, default=0),
    )


def _gpus_needed(pools: Sequence[Pool], board: Board, *, complete: bool) -> int:
    """GPUs that the fleet takes; for sharing pools of a refused fleet, the fewest that could hold their claims."""
    exclusive = sum(pool.workers * pool.device_count for pool in pools if not pool.share)
    sharing = [pool for pool in pools if pool.share and pool.workers and pool.device_count]
    if not sharing:
        return exclusive
    if complete:
        return exclusive + sum(1 for seat in board.seats.values() if seat.holders and seat.holders[0].share)
    claims = sum(pool.workers * pool.device_count * pool.gpu_memory_utilization for pool in sharing)
    return exclusive + max(math.ceil(claims / board.limit_ratio), *(pool.device_count for pool in sharing), 1)


def _names_gpus(pool: Pool) -> bool:
    return bool(pool.gpus) or pool.first_gpu is not None


def _claimant(pool: Pool, worker: str) -> Claimant:
    return Claimant(
        worker=worker, pool=pool.name, count=pool.device_count, ratio=pool.gpu_memory_utilization, share=pool.share
    )
