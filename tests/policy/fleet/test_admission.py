"""The start gate of a shared GPU opens when the one that starts is ready, or holds all the memory that it will."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.policy.fleets import GIB, TOTAL_BYTES, a_gpu, applied

from gpuward.config.fleet import Pool
from gpuward.policy.fleet.step import FleetState, observe, step
from gpuward.policy.gpus.holders import Holder
from gpuward.policy.gpus.inventory import GpuProcess, Snapshot
from gpuward.policy.worker.life import BecameReady, Effect, Phase, StartRun, StopAsked, Terminate

PID = 77
CLAIM_BYTES = round(0.3 * TOTAL_BYTES)


def a_shared_pool(name: str) -> Pool:
    return Pool(name=name, model="m", gpus_per_worker=1, share=True, gpus=(0,), gpu_memory_utilization=0.3)


def seen(at_s: float, held_bytes: int | None, *, others_bytes: int = 0) -> Snapshot:
    """GPU 0 with one process that holds so much, beside what others hold."""
    process = GpuProcess(pid=PID, used_bytes=held_bytes)
    gpu = a_gpu(0, used_bytes=(held_bytes or CLAIM_BYTES) + others_bytes, processes=(process,))
    return Snapshot(provider="simulated", state="ok", taken_at_s=at_s, gpus=(gpu,))


def one_starts(held_bytes: int | None) -> FleetState:
    """Pool a starts and has just come to hold so much; pool b waits behind it."""
    snapshot = replace(seen(0.0, 0), gpus=(a_gpu(0),))
    state, effects = applied(FleetState(snapshot=snapshot), [a_shared_pool("a"), a_shared_pool("b")])
    assert effects[-1] == StartRun("a/0", 1)
    state, _ = watched(state, 1.0, GIB)
    return watched(state, 5.0, held_bytes)[0]


def watched(
    state: FleetState, at_s: float, held_bytes: int | None, **known: int
) -> tuple[FleetState, tuple[Effect, ...]]:
    return observe(state, seen(at_s, held_bytes, **known), at_s, {PID: Holder(kind="ours", worker="a/0")})


def test_a_start_that_holds_its_claim_without_a_move_for_ten_seconds_lets_the_next_one_in() -> None:
    state = one_starts(CLAIM_BYTES)

    state, early = watched(state, 14.9, CLAIM_BYTES)
    reason = state.workers["b/0"].reason
    state, late = watched(state, 15.0, CLAIM_BYTES)

    assert (early, late) == ((), (StartRun("b/0", 1),))
    assert "waits for a/0 (starting): one start at a time on a shared GPU" in reason
    assert state.workers["a/0"].phase is Phase.STARTING


@pytest.mark.parametrize("held_bytes", [0, CLAIM_BYTES // 2, None])
def test_flat_memory_below_the_claim_opens_nothing(held_bytes: int | None) -> None:
    """While it compiles vLLM is flat for minutes, with its weights loaded and its KV cache still to come."""
    _, effects = watched(one_starts(held_bytes), 60.0, held_bytes)

    assert effects == ()


def test_memory_that_moves_begins_the_ten_seconds_anew() -> None:
    state = one_starts(CLAIM_BYTES)

    state, _ = watched(state, 14.0, CLAIM_BYTES, others_bytes=GIB)
    state, moved = watched(state, 16.0, CLAIM_BYTES, others_bytes=GIB)
    _, flat = watched(state, 24.0, CLAIM_BYTES, others_bytes=GIB)

    assert (moved, flat) == ((), (StartRun("b/0", 1),))


def test_a_daemon_that_finds_flat_memory_does_not_know_for_how_long() -> None:
    state = replace(one_starts(CLAIM_BYTES), levels={})

    state, first = watched(state, 100.0, CLAIM_BYTES)
    _, later = watched(state, 200.0, CLAIM_BYTES)

    assert (first, later) == ((), ())


def test_a_neighbour_may_be_stopped_once_the_one_that_starts_has_its_memory() -> None:
    state = one_starts(CLAIM_BYTES)
    state, _ = watched(state, 15.0, CLAIM_BYTES)
    state, _ = step(state, [("a/0", BecameReady(1))], 16.0)
    state, waits = step(state, [("a/0", StopAsked())], 17.0)
    b = {PID: Holder(kind="ours", worker="b/0")}

    state, _ = observe(state, seen(18.0, CLAIM_BYTES, others_bytes=CLAIM_BYTES), 18.0, b)
    _, stops = observe(state, seen(28.0, CLAIM_BYTES, others_bytes=CLAIM_BYTES), 28.0, b)

    assert (waits, stops) == ((), (Terminate("a/0"),))
