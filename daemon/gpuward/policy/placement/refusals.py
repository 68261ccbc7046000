"""What placement says when it refuses: the numbers first, then the way out. Sentences only; `placement` decides."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gpuward.config.fleet import Pool, Remark
from gpuward.policy.gpus.inventory import Gpu, Snapshot
from gpuward.policy.gpus.modes import for_one_process
from gpuward.policy.placement.board import Claimant, Seat
from gpuward.policy.placement.named_gpus import Host, Named, listed, problem

PER_WORKER = "gpus-per-worker (gpu in Dynamo's files) is per worker, not the pool's total"


def inventory_unavailable(snapshot: Snapshot) -> Remark:
    """The driver does not answer, or has not since the GPUs were last seen: nothing may be placed on that."""
    state = "not available" if snapshot.state == "unavailable" else snapshot.state
    why = f": {snapshot.reason}" if snapshot.reason else ""
    hint = "; to try a fleet without GPUs use --simulate, as 8xH100-80GB" if snapshot.state == "unavailable" else ""
    message = f"cannot place GPU workers: the GPU inventory is {state}{why}{hint}"
    return Remark(code="inventory-unavailable", pool=None, message=message)


def parallel_size_mismatch(pool: Pool) -> Remark | None:
    """Compare what the engine will use with what each worker gets; idle GPUs may be allowed, missing ones never."""
    given = pool.gpus_per_worker
    data = pool.data_parallel_size
    if given is None or (pool.tensor_parallel_size is None and pool.pipeline_parallel_size is None and data == 1):
        return None
    used, pipeline = pool.parallel_size, pool.pipeline_parallel_size or 1
    if used == given or (used < given and pool.allow_idle_gpus):
        return None
    engines = f" x data-parallel-size {data}" if data > 1 else ""
    sum_ = (
        f"tensor-parallel-size {pool.tensor_size} x pipeline-parallel-size {pipeline}{engines} = {used}, "
        f"but gpus-per-worker is {given}"
    )
    if used > given:
        sentence = (
            f"{sum_}: each worker lacks {used - given} GPUs; set gpus-per-worker = {used} or smaller parallel sizes"
        )
    else:
        sentence = (
            f"{sum_}: each worker would leave {given - used} of its {given} GPUs idle; {PER_WORKER}: "
            f"set gpus-per-worker = {used}, raise tensor-parallel-size, or set allow-idle-gpus = true"
        )
    return problem("parallel-size-mismatch", pool, sentence)


def too_few_gpus(pool: Pool, pools: Sequence[Pool], host: Host, free: int) -> Remark:
    """Not enough free GPUs for the workers of an exclusive pool. ``free``: what the other pools left it."""
    each = pool.device_count
    total = sum(other.workers * other.device_count for other in pools if not other.share)
    rest = total - pool.workers * each
    others = f", + {rest} for the other pools = {total}" if rest else ""
    message = (
        f"cannot place pool '{pool.name}': {pool.workers} workers x {each} GPUs each = {pool.workers * each}{others}, "
        f"but this host has {host.size}{host.rest} ({free} free for this pool); "
        + (f"{PER_WORKER}; lower workers or gpus-per-worker" if each > 1 else "lower workers")
    )
    return Remark(code="too-few-gpus", pool=pool.name, message=message)


def no_common_kind(pool: Pool, free: Sequence[Seat]) -> Remark:
    """Enough GPUs in number, but no worker gets its set of one model."""
    kinds: dict[str, list[int]] = {}
    for seat in free:
        kinds.setdefault(seat.gpu.name, []).append(seat.gpu.index)
    there = "; ".join(f"{name}: GPU {listed(indices)}" for name, indices in kinds.items())
    message = (
        f"cannot place pool '{pool.name}': each of its {pool.workers} workers needs {pool.device_count} GPUs "
        f"of one model, free are {there}; lower gpus-per-worker, or name the GPUs with `gpus` to mix models"
    )
    return Remark(code="too-few-gpus", pool=pool.name, message=message)


def no_shared_room(pool: Pool, host: Host, limit_ratio: float, placed: int) -> Remark:
    """A sharing pool finds neither a shared GPU with room nor a free one."""
    ratio = pool.gpu_memory_utilization
    if ratio > limit_ratio:
        message = (
            f"cannot place pool '{pool.name}': each worker claims {ratio:g} of a GPU, more than the {limit_ratio:g} "
            "that a shared GPU may hold (limits.claims-per-gpu); lower gpu-memory-utilization"
        )
        return Remark(code="claims-exceed-gpu", pool=pool.name, message=message)
    message = (
        f"cannot place pool '{pool.name}': {placed} of {pool.workers} workers have room; each claims {ratio:g} of "
        f"{pool.device_count} GPUs, and a shared GPU holds {math.floor(limit_ratio / ratio + 1e-9)} of them "
        f"(limit {limit_ratio:g}); this host has {host.size}{host.rest}, none free or shared with room is left; "
        f"lower workers or gpu-memory-utilization{_for_one(host.usable)}"
    )
    return Remark(code="too-few-gpus", pool=pool.name, message=message)


def one_process_gpus(pool: Pool, named: Named, seats: Sequence[Seat]) -> Remark:
    """A sharing pool names GPUs on which CUDA lets one process only."""
    gpus = [seat.gpu for seat in seats]
    return problem("compute-mode", pool, f"{named.key}: cannot share GPU {listed_gpus(gpus)}{_for_one(gpus)}")


def _for_one(gpus: Sequence[Gpu]) -> str:
    alone = [gpu for gpu in gpus if for_one_process(gpu)]
    if not alone:
        return ""
    way_out = "nvidia-smi -c DEFAULT lets them share, or leave out share = true"
    return (
        f"; GPU {listed_gpus(alone)}: in compute mode {alone[0].vitals.compute_mode} for one process alone; {way_out}"
    )


def listed_gpus(gpus: Sequence[Gpu]) -> str:
    """Their indices, as in a sentence."""
    return listed([gpu.index for gpu in gpus])


def claims_exceed(pool: Pool, named: Named, seats: Sequence[Seat], limit_ratio: float) -> Remark:
    """The GPUs that a sharing pool names cannot hold the claims of its workers and of those before it."""
    ratio, workers = pool.gpu_memory_utilization, pool.workers
    others: dict[str, float] = {}
    for seat in seats:
        for holder in seat.holders:
            if holder.pool != pool.name:
                others[holder.pool] = others.get(holder.pool, 0.0) + holder.ratio
    beside = "".join(f" + {claimed:g} of pool '{name}'" for name, claimed in others.items())
    asked = workers * pool.device_count * ratio
    room = len(seats) * limit_ratio
    indices = listed([seat.gpu.index for seat in seats])
    sentence = (
        f"{named.key}: {workers} workers x {pool.device_count} GPUs x gpu-memory-utilization {ratio:g} = {asked:g}"
        f"{beside} on GPU {indices}, which may hold {limit_ratio:g} each = {room:g}, in whole workers; "
        "lower gpu-memory-utilization or workers, or name more GPUs"
    )
    return problem("claims-exceed-gpu", pool, sentence)


def gpu_conflict(pool: Pool, named: Named, rivals: Sequence[tuple[Seat, Claimant]]) -> Remark:
    """GPUs that this pool names belong to workers of pools that do not share (or this one does not)."""
    owners = "; ".join(f"GPU {seat.gpu.index} is asked for by {rival.worker} too" for seat, rival in rivals)
    sentence = f"{named.key}: {owners}; give each pool GPUs of its own, or set share = true in both"
    return problem("gpu-conflict", pool, sentence)
