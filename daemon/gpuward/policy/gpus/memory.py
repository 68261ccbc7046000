"""Claims, and whether a GPU has room for one. Bytes throughout."""

from __future__ import annotations

import math
from typing import Final

from gpuward.config.fleet import Pool
from gpuward.policy.gpus.holders import GIB, NOBODY, Holders, named
from gpuward.policy.gpus.inventory import Gpu, Snapshot
from gpuward.policy.reasons import Wait

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")


def claim_bytes(pool: Pool, gpu: Gpu) -> int | None:
    """Share of this GPU that one worker of the pool may use: ceil(total x utilization), as vLLM computes it.

    (vllm/v1/worker/utils.py, ``request_memory``.) None where the GPU does not tell its total.
    """
    return None if gpu.total_bytes is None else math.ceil(gpu.total_bytes * pool.gpu_memory_utilization)


def gib(count: int) -> str:
    """A size for a sentence."""
    return f"{count / GIB:.1f} GiB"


def bytes_of(size: str) -> int | None:
    """Bytes of a size as PyTorch prints it (``2.00 GiB``); None where it is none."""
    number, _, unit = size.partition(" ")
    try:
        return int(float(number) * 1024 ** (_UNITS.index(unit) + 1))
    except ValueError:
        return None


def room_missing(
    pool: Pool, snapshot: Snapshot, uuids: tuple[str, ...], margin_bytes: int, holders: Holders = NOBODY
) -> Wait | None:
    """Say which GPU has no room for the pool's claim, and who holds it; None where there is room on all.

    The margin covers what a CUDA context takes before vLLM measures; it never asks for more than an idle GPU has.
    """
    for uuid in uuids:
        gpu = snapshot.gpu(uuid)
        if gpu is None:
            return Wait(kind="gpu-missing", text=f"GPU {uuid} is not in the inventory", on=uuid)
        if gpu.health == "lost":
            return Wait(kind="gpu-lost", text=f"GPU {gpu.index} is lost: {gpu.reason}", on=uuid)
        claim = claim_bytes(pool, gpu)
        if claim is None or gpu.free_bytes is None or gpu.total_bytes is None:
            continue
        idle = gpu.total_bytes - (gpu.reserved_bytes or 0)
        if gpu.free_bytes < max(claim, min(claim + margin_bytes, idle)):
            return Wait(kind="memory", text=_shortage(pool, gpu, claim, holders), on=uuid)
    return None


def _shortage(pool: Pool, gpu: Gpu, claim: int, holders: Holders) -> str:
    biggest = sorted(gpu.processes, key=lambda process: -(process.used_bytes or 0))
    listed = ", ".join(named(process, holders) for process in biggest[:3])
    more = f" and {len(biggest) - 3} more" if len(biggest) > 3 else ""
    held = f"held by {listed}{more}" if listed else "no process is listed on it"
    return (
        f"waits for memory on GPU {gpu.index}: the claim is {gib(claim)} "
        f"({pool.gpu_memory_utilization:g} of {gib(gpu.total_bytes or 0)}), free are {gib(gpu.free_bytes or 0)}; {held}"
    )
