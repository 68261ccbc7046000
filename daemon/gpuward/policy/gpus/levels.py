"""How long the free memory of each GPU has been what it is: memory on its way back is not back. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gpuward.policy.gpus.holders import GIB
from gpuward.policy.gpus.inventory import Snapshot
from gpuward.policy.gpus.memory import gib
from gpuward.policy.reasons import Wait

STEADY_S: Final = 0.25
"""Two samples this far apart must show the same free memory before it counts as returned."""

TOLERANCE_BYTES: Final = GIB // 16


FLAT_S: Final = 10.0
"""A run that holds its claim, on a GPU whose free memory has not moved for so long, has all that it takes.

Between loading its weights and filling its KV cache vLLM compiles, for minutes at times, with flat memory too: so it
is flat only where the claim is filled.
"""

FILLED: Final = 0.9


@dataclass(frozen=True, slots=True)
class Level:
    """Free bytes of a GPU, and the time of the first of the samples in a row that showed them."""

    free_bytes: int
    since_s: float


def levels(before: Mapping[str, Level], snapshot: Snapshot) -> Mapping[str, Level]:
    """Return the levels after one more sample; one that is not fresh tells nothing."""
    if snapshot.state != "ok":
        return before
    after: dict[str, Level] = {}
    for gpu in snapshot.gpus:
        if gpu.free_bytes is None:
            continue
        known = before.get(gpu.uuid)
        if known is None:
            after[gpu.uuid] = Level(gpu.free_bytes, -math.inf)  # not seen to have moved
        elif abs(known.free_bytes - gpu.free_bytes) <= TOLERANCE_BYTES:
            after[gpu.uuid] = known
        else:
            after[gpu.uuid] = Level(gpu.free_bytes, snapshot.taken_at_s)
    return after


def unsteady(
    known: Mapping[str, Level], snapshot: Snapshot, uuids: tuple[str, ...], ended_s: float
) -> tuple[Wait, float] | None:
    """Say which GPU's memory has moved since ``ended_s`` and is not seen twice yet, and when to look again.

    A GPU whose free memory is the same as before the end gave nothing back: one sample is enough there.
    """
    for uuid in uuids:
        level, gpu = known.get(uuid), snapshot.gpu(uuid)
        if level is None or gpu is None or level.since_s <= ended_s:
            continue
        if snapshot.taken_at_s - level.since_s < STEADY_S:
            reason = f"waits for a second sample of GPU {gpu.index}: {gib(level.free_bytes)} free since an instant"
            return Wait(kind="sample", text=reason, on=uuid), level.since_s + STEADY_S
    return None


def flat(level: Level | None, held_bytes: int | None, claim_bytes: int | None, now_s: float) -> bool:
    """Whether a run that holds so much of its claim on a GPU has all that it takes there; None is never enough.

    A level that was not seen to begin proves nothing: the daemon may have come after it.
    """
    if level is None or held_bytes is None or claim_bytes is None or math.isinf(level.since_s):
        return False
    return held_bytes >= FILLED * claim_bytes and now_s - level.since_s >= FLAT_S
