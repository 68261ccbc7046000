"""What an operator should know about a placement that works: sentences, and when they are true."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gpuward.config.fleet import Pool, Remark
from gpuward.policy.gpus.inventory import Gpu
from gpuward.policy.placement.board import kind_of
from gpuward.policy.placement.named_gpus import Host, listed, problem, written
from gpuward.policy.placement.plan import PlannedWorker


def placement_warnings(pools: Sequence[Pool], host: Host, workers: Sequence[PlannedWorker]) -> tuple[Remark, ...]:
    """All warnings, those about the host first."""
    by_pool: dict[str, list[PlannedWorker]] = {}
    for worker in workers:
        by_pool.setdefault(worker.pool, []).append(worker)
    return (
        *_about_host(host),
        *(remark for pool in pools for remark in _about_sets(pool, host, by_pool.get(pool.name, []))),
        *(remark for pool in pools if workers for remark in _offset_splits(pool, pools, host, workers)),
    )


def _about_host(host: Host) -> Iterator[Remark]:
    for gpu in host.lost:
        why = f" ({gpu.reason})" if gpu.reason else ""
        yield Remark(code="gpu-lost", pool=None, message=f"GPU {gpu.index} is lost{why}: nothing is placed on it")
    for uuid, why in host.closed.items():
        if host.by_name[uuid].health != "lost":
            yield Remark(code="gpu-closed", pool=None, message=f"{why}; nothing new is placed there")
    if host.unknown_exclusions:
        names = written(host.unknown_exclusions)
        message = (
            f"the host settings exclude {names}, but this host has GPUs 0 to {host.size - 1}: that excludes nothing"
        )
        yield Remark(code="unknown-excluded-gpu", pool=None, message=message)


def _about_sets(pool: Pool, host: Host, workers: Sequence[PlannedWorker]) -> Iterator[Remark]:
    scattered = [
        worker for worker in workers if any(b - a != 1 for a, b in zip(worker.gpus, worker.gpus[1:], strict=False))
    ]
    if scattered and not pool.gpus and not pool.share:
        sets = "; ".join(f"{worker.name}: {listed(worker.gpus)}" for worker in scattered)
        sentence = (
            f"no neighbouring GPUs were left ({sets}); list the pool earlier in the file, or name its GPUs with `gpus`"
        )
        yield problem("gpus-not-adjacent", pool, sentence)
    sets_of_gpus = [tuple(host.by_name[uuid] for uuid in worker.gpu_uuids) for worker in workers]
    if any(len({kind_of(gpu) for gpu in gpus}) > 1 for gpus in sets_of_gpus):
        sentence = "a worker has GPUs of different models; its claim is that of the smallest, the rest stays unused"
        yield problem("mixed-gpus", pool, sentence)
    silent = sorted({gpu.index for gpus in sets_of_gpus for gpu in gpus if gpu.total_bytes is None})
    if silent:
        sentence = f"GPU {listed(silent)} does not tell its memory: claims on it are not reckoned in bytes"
        yield problem("gpu-memory-unknown", pool, sentence)


def _offset_splits(pool: Pool, pools: Sequence[Pool], host: Host, workers: Sequence[PlannedWorker]) -> Iterator[Remark]:
    """GPUs right before the offset that stay free although a worker of several GPUs had to go behind it."""
    taken = {index for worker in workers for index in worker.gpus}
    if pool.first_gpu is None or pool.first_gpu not in taken:
        return
    idle = _free_before(pool.first_gpu, taken, host.usable)
    last = pool.first_gpu + pool.workers * pool.device_count - 1
    placed_freely = {other.name for other in pools if other.first_gpu is None and not other.gpus and not other.share}
    pushed = [
        worker.name
        for worker in workers
        if worker.pool in placed_freely and len(worker.gpus) > len(idle) and min(worker.gpus) > last
    ]
    if idle and pushed:
        sentence = (
            f"first-gpu = {pool.first_gpu} splits the free GPUs: GPU {listed(idle)} stays free because "
            f"{', '.join(pushed)} did not fit before it; move first-gpu by {len(idle)}, or leave it out"
        )
        yield problem("offset-splits", pool, sentence)


def _free_before(first: int, taken: set[int], usable: Sequence[Gpu]) -> list[int]:
    free = {gpu.index for gpu in usable} - taken
    idle: list[int] = []
    while first - 1 - len(idle) in free:
        idle.insert(0, first - 1 - len(idle))
    return idle
