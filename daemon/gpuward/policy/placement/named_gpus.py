"""GPUs that the operator named by ``gpus`` or ``first-gpu``, and which GPUs of the host are usable at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpuward.config.errors import one_line
from gpuward.config.fleet import Pool, Remark
from gpuward.policy.gpus.inventory import Gpu, Snapshot


@dataclass(frozen=True, slots=True)
class Host:
    """The GPUs of a snapshot; ``usable`` are neither excluded by the host settings, nor closed, nor lost.

    ``size`` counts all that the inventory lists. ``closed``: UUIDs that take no new worker, and why.
    """

    size: int
    by_name: dict[int | str, Gpu]
    excluded: frozenset[str]
    unknown_exclusions: tuple[int | str, ...]
    usable: tuple[Gpu, ...]
    lost: tuple[Gpu, ...]
    closed: Mapping[str, str]

    @property
    def rest(self) -> str:
        """What the sentence about too few GPUs must not hide: ``, 1 of them excluded``; empty where all are usable."""
        closed = [uuid for uuid in self.closed if uuid not in {gpu.uuid for gpu in self.lost}]
        parts = [
            (len(self.excluded), "excluded by the host settings"),
            (len(closed), "quarantined, cordoned or barred by their mode"),
            (len(self.lost), "lost"),
        ]
        return "".join(f", {count} of them {why}" for count, why in parts if count)


@dataclass(frozen=True, slots=True)
class Named:
    """What a pool's ``gpus`` or ``first-gpu`` come to, in order; ``key`` is what the operator wrote."""

    key: str
    gpus: tuple[Gpu, ...]
    problems: tuple[Remark, ...]


def host_of(snapshot: Snapshot, excluded: Sequence[int | str], closed: Mapping[str, str]) -> Host:
    """Index the snapshot's GPUs by index and by UUID."""
    by_name: dict[int | str, Gpu] = {}
    for gpu in snapshot.gpus:
        by_name[gpu.index] = by_name[gpu.uuid] = gpu
    out = frozenset(by_name[name].uuid for name in excluded if name in by_name)
    return Host(
        size=len(snapshot.gpus),
        by_name=by_name,
        excluded=out,
        unknown_exclusions=tuple(name for name in excluded if name not in by_name),
        usable=tuple(
            gpu for gpu in snapshot.gpus if gpu.uuid not in out and gpu.uuid not in closed and gpu.health != "lost"
        ),
        lost=tuple(gpu for gpu in snapshot.gpus if gpu.health == "lost"),
        closed={gpu.uuid: closed[gpu.uuid] for gpu in snapshot.gpus if gpu.uuid in closed and gpu.uuid not in out},
    )


def named_gpus(pool: Pool, host: Host) -> Named:
    """Look up the GPUs that the pool names; every one that cannot be had is a problem of its own."""
    if pool.gpus:
        key, names = f"gpus = {written(pool.gpus)}", pool.gpus
    else:
        first = pool.first_gpu or 0
        key, names = f"first-gpu = {first}", tuple(range(first, first + pool.workers * pool.device_count))
    problems = [remark for name in names if (remark := _unusable(pool, key, name, host)) is not None]
    gpus = tuple(host.by_name[name] for name in names if name in host.by_name)
    twice = sorted(index for index, times in Counter(gpu.index for gpu in gpus).items() if times > 1)
    if twice:
        message = f"{key} names GPU {listed(twice)} more than once; name each GPU once"
        problems.append(problem("gpu-conflict", pool, message))
    size = _wrong_size(pool)
    return Named(key=key, gpus=gpus, problems=(*problems, *([size] if size else [])))


def problem(code: str, pool: Pool, sentence: str) -> Remark:
    """A remark about one pool, that names it."""
    return Remark(code=code, pool=pool.name, message=one_line(f"pool '{pool.name}': {sentence}"))


def listed(indices: Sequence[int]) -> str:
    """Indices for a sentence: ``0, 1, 5``."""
    return ", ".join(str(index) for index in indices)


def written(names: Sequence[int | str]) -> str:
    """A device list as it stands in a file."""
    return "[" + ", ".join(str(name) if isinstance(name, int) else f'"{name}"' for name in names) + "]"


def _unusable(pool: Pool, key: str, name: int | str, host: Host) -> Remark | None:
    gpu = host.by_name.get(name)
    if gpu is None:
        there = f"GPUs 0 to {host.size - 1}" if host.size else "no GPUs"
        message = f"{key} needs GPU {name}, but this host has {there}; `gpuctl gpus` lists them"
        return problem("unknown-gpu", pool, message)
    if gpu.uuid in host.excluded:
        message = f"{key} needs GPU {gpu.index}, which the host settings exclude (inventory.exclude); name another"
        return problem("gpu-excluded", pool, message)
    if gpu.uuid in host.closed and gpu.health != "lost":
        message = f"{key} needs GPU {gpu.index}, but {host.closed[gpu.uuid]}; or name another"
        return problem("gpu-excluded", pool, message)
    if gpu.health == "lost":
        why = f" ({gpu.reason})" if gpu.reason else ""
        message = f"{key} needs GPU {gpu.index}, which is lost{why}; it needs a reset or a reboot, or name another"
        return problem("inventory-unavailable", pool, message)
    return None


def _wrong_size(pool: Pool) -> Remark | None:
    """``gpus`` must have exactly the GPUs that the workers need; a sharing pool needs only enough for one worker."""
    if not pool.gpus or not pool.workers:
        return None
    each, named = pool.device_count, len(pool.gpus)
    need = each if pool.share else pool.workers * each
    if named == need or (pool.share and named > need):
        return None
    if pool.share:
        sentence = f"gpus = {written(pool.gpus)} names {named} GPUs, but each worker needs {each}; name at least {each}"
    else:
        sentence = (
            f"gpus = {written(pool.gpus)} names {named} GPUs, but {pool.workers} workers x {each} GPUs each = {need}; "
            "name that many, or change workers or gpus-per-worker, or set share = true"
        )
    return problem("gpu-list-size", pool, sentence)
