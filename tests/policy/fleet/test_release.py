"""When memory counts as returned, who holds it, and what is done about processes that we left behind."""

from __future__ import annotations

from dataclasses import replace

from tests.policy.fleets import GIB, a_gpu, a_snapshot, applied

from gpuward.config.fleet import Pool
from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.fleet.release import orphans
from gpuward.policy.fleet.step import FleetState, next_deadline_s, observe, step
from gpuward.policy.gpus.holders import Holder, named
from gpuward.policy.gpus.inventory import GpuProcess, Snapshot
from gpuward.policy.gpus.levels import STEADY_S
from gpuward.policy.worker.life import BecameReady, Goal, KillOrphan, Phase, RunEnded, StartRun, TakeSample, Worker

POOL = Pool(name="m", model="m", gpus_per_worker=1)


def ended(run: int = 1) -> RunEnded:
    exit_ = LastExit(run=run, cause="crash", code=1, signal=None, at=0.0)
    return RunEnded(run=run, exit=exit_, permanent=False, reason="crash")


def held_by(pid: int, used_bytes: int, at_s: float) -> Snapshot:
    process = GpuProcess(pid=pid, used_bytes=used_bytes, name="x")
    snapshot = a_snapshot(1, at_s=at_s)
    return replace(snapshot, gpus=(a_gpu(0, used_bytes=used_bytes, processes=(process,)),))


def a_ready_run(used_bytes: int) -> FleetState:
    state, _ = observe(FleetState(snapshot=a_snapshot(1)), a_snapshot(1, at_s=0.1), 0.1)
    state, _ = applied(state, [POOL], None, 0.2)
    state, _ = step(state, [("m/0", BecameReady(1))], 1.0)
    state, _ = observe(state, held_by(77, used_bytes, 5.0), 5.0, {77: Holder(kind="ours", worker="m/0")})
    return step(state, [("m/0", ended())], 10.0)[0]


def test_memory_that_came_back_is_believed_at_the_second_sample_and_not_before() -> None:
    state = a_ready_run(70 * GIB)

    first, _ = observe(state, a_snapshot(1, at_s=10.1), 10.1)
    look_at_s = next_deadline_s(first, 10.1)
    asked, effects = step(first, [], 10.1 + STEADY_S)
    second, _ = observe(asked, a_snapshot(1, at_s=10.4), 10.4)

    assert first.workers["m/0"].phase is Phase.RELEASING
    assert "waits for a second sample of GPU 0: 80.0 GiB free" in first.workers["m/0"].reason
    assert look_at_s == 10.1 + STEADY_S
    assert effects == (TakeSample(),)
    assert second.workers["m/0"].phase is Phase.BACKOFF


def test_memory_that_comes_back_in_steps_is_waited_for_to_the_last() -> None:
    state = a_ready_run(70 * GIB)

    phases = []
    for at_s, used_gib in ((10.1, 7), (10.5, 4), (11.0, 1), (11.2, 1), (11.5, 1)):
        state, _ = observe(state, a_snapshot(1, at_s=at_s, used={0: used_gib * GIB}), at_s)
        phases.append(state.workers["m/0"].phase)

    assert phases == [Phase.RELEASING] * 4 + [Phase.BACKOFF]


def test_a_run_that_held_nothing_needs_one_sample() -> None:
    state = a_ready_run(0)

    state, _ = observe(state, a_snapshot(1, at_s=10.1), 10.1)

    assert state.workers["m/0"].phase is Phase.BACKOFF


def test_a_process_of_the_ended_run_that_the_driver_still_lists_is_waited_for() -> None:
    state = a_ready_run(1 * GIB)

    state, _ = observe(state, held_by(77, 0, 10.1), 10.1, {77: Holder(kind="former", worker="m/0")})

    assert state.workers["m/0"].phase is Phase.RELEASING
    assert "waits for pid 77 (m/0, 0.0 GiB) to be gone from GPU 0" in state.workers["m/0"].reason


def test_after_the_limit_the_holder_is_named_with_pid_user_program_and_bytes() -> None:
    state = a_ready_run(70 * GIB)
    holders = {99: Holder(kind="foreign", user="alice", program="python train.py")}

    for at_s in (10.1, 11.0, 75.0):
        state, effects = observe(state, held_by(99, 40 * GIB, at_s), at_s, holders)

    assert state.workers["m/0"].phase is Phase.BLOCKED
    assert state.workers["m/0"].reason == (
        "waits for memory on GPU 0: the claim is 72.0 GiB (0.9 of 80.0 GiB), free are 40.0 GiB; "
        "held by pid 99 (alice: python train.py, 40.0 GiB)"
    )
    assert not any(isinstance(effect, KillOrphan) for effect in effects)


def test_a_foreign_holder_is_waited_for_without_end_and_left_alone() -> None:
    state = a_ready_run(70 * GIB)
    holders = {99: Holder(kind="foreign", user="alice", program="python train.py")}

    state, first = observe(state, held_by(99, 40 * GIB, 80.0), 80.0, holders)
    state, later = observe(state, held_by(99, 40 * GIB, 90_000.0), 90_000.0, holders)
    state, gone = observe(state, a_snapshot(1, at_s=90_001.0), 90_001.0)

    assert (first, later) == ((), ())
    assert gone == (StartRun("m/0", 2),)


def test_what_carries_the_marker_of_a_run_that_ended_is_killed() -> None:
    state = a_ready_run(70 * GIB)
    orphan = {99: Holder(kind="marked", worker="m/0", run=1)}

    _, effects = observe(state, held_by(99, 70 * GIB, 10.2), 10.2, orphan)

    assert effects == (KillOrphan("m/0", 1),)


def test_what_carries_the_marker_of_the_living_run_is_never_killed() -> None:
    waits = Worker(name="n/0", pool="n", index=0, goal=Goal.UP, phase=Phase.BLOCKED, device_uuids=("GPU-0",))
    lives = Worker(name="m/0", pool="m", index=0, goal=Goal.UP, phase=Phase.READY, run=2, run_uuids=("GPU-0",))
    sample, workers = held_by(99, GIB, 21.0), {"n/0": waits, "m/0": lives}

    living = orphans(workers, sample, {99: Holder(kind="marked", worker="m/0", run=2)})
    earlier = orphans(workers, sample, {99: Holder(kind="marked", worker="m/0", run=1)})

    assert (tuple(living), tuple(earlier)) == ((), (KillOrphan("m/0", 1),))


def test_nothing_is_killed_where_no_worker_waits_or_the_sample_is_stale() -> None:
    state = a_ready_run(70 * GIB)
    orphan = {99: Holder(kind="marked", worker="m/0", run=1)}
    stale = replace(held_by(99, 70 * GIB, 10.2), state="stale", reason="r")

    assert observe(state, stale, 10.2, orphan)[1] == ()
    assert observe(FleetState(snapshot=a_snapshot(1)), held_by(99, GIB, 10.2), 10.2, orphan)[1] == ()


def test_a_process_that_nobody_knows_more_of_has_its_name() -> None:
    assert named(GpuProcess(pid=5, used_bytes=None, name="python"), {}) == "pid 5 (python)"
