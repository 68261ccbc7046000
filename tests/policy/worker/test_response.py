"""What follows from a cause."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.policy.fleets import a_snapshot, applied

from gpuward.config.fleet import OnCause, Pool
from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.fleet.step import FleetState, observe, step
from gpuward.policy.worker.life import BecameReady, Note, Phase, RunEnded, StartAsked, StartRun, Worker
from gpuward.policy.worker.response import FAULT_WINDOW_S, WAIT_WINDOW_S, WAITS_MAX, after_end, answer_to
from gpuward.policy.worker.restart import GiveUp, Restart

POOL = Pool(name="m", model="m", gpus_per_worker=1)
WORKER = Worker(name="m/0", pool="m", index=0, run=1, run_uuids=("GPU-0",), device_uuids=("GPU-0",))


def an_end(cause: str, *, run: int = 1, permanent: bool = False) -> RunEnded:
    exit_ = LastExit(run=run, cause=cause, code=1, signal=None, at=0.0)
    return RunEnded(run=run, exit=exit_, permanent=permanent, reason=cause, hint="lower it")


@pytest.mark.parametrize(
    ("cause", "permanent", "answer"),
    [
        ("gpu-busy", False, "wait"),
        ("profiling-race", False, "wait"),
        ("cuda-fault", False, "move"),
        ("gpu-hardware", True, "fail"),
        ("config-error", True, "fail"),
        ("kv-cache-too-small", True, "fail"),
        ("port-conflict", False, "restart"),
        ("gpu-oom-runtime", False, "restart"),
        ("hang", False, "restart"),
        ("crash", False, "restart"),
    ],
)
def test_each_cause_has_its_answer(cause: str, permanent: bool, answer: str) -> None:
    assert answer_to(POOL, an_end(cause, permanent=permanent)) == answer


def test_a_taken_port_is_final_only_where_the_pool_names_it() -> None:
    worker = replace(WORKER, port_block=20000, port=20000)
    taken = an_end("port-conflict", permanent=True)

    moves, restarts = after_end(worker, POOL, taken, 10.0)
    _, gives_up = after_end(worker, Pool(name="m", model="m", port=8000), taken, 10.0)

    assert moves.shunned_blocks == (20000,)
    assert isinstance(restarts, Restart)
    assert isinstance(gives_up, GiveUp)


def test_a_pool_may_answer_otherwise() -> None:
    pool = Pool(name="m", model="m", on_cause=OnCause(gpu_busy="fail", config_error="restart"))

    assert answer_to(pool, an_end("gpu-busy")) == "fail"
    assert answer_to(pool, an_end("config-error", permanent=True)) == "restart"


def test_on_oom_hold_keeps_it_down_and_says_what_to_change() -> None:
    pool = Pool(name="m", model="m", on_oom="hold")

    _, verdict = after_end(WORKER, pool, an_end("gpu-oom-runtime"), 10.0)

    assert isinstance(verdict, GiveUp)
    assert verdict.reason == 'on-oom is "hold"; lower it, then gpuctl start m/0'


def test_a_wait_for_a_condition_counts_no_failure_and_has_a_bound_of_its_own() -> None:
    worker, now_s = WORKER, 0.0
    for number in range(WAITS_MAX):
        worker, verdict = after_end(worker, POOL, an_end("gpu-busy"), now_s)
        assert isinstance(verdict, Restart)
        assert (verdict.failures, verdict.consecutive) == ((), 0)
        assert verdict.not_before_s > now_s
        assert f"wait {number + 1} of {WAITS_MAX}" in verdict.reason
        now_s = verdict.not_before_s

    _, verdict = after_end(worker, POOL, an_end("gpu-busy"), now_s)
    _, later = after_end(worker, POOL, an_end("gpu-busy"), now_s + WAIT_WINDOW_S)

    assert isinstance(verdict, GiveUp)
    assert f"{WAITS_MAX + 1} starts within {WAIT_WINDOW_S:g} s" in verdict.reason
    assert isinstance(later, Restart)


def test_status_tells_which_wait_it_is_while_the_worker_waits() -> None:
    state, _ = applied(FleetState(snapshot=a_snapshot(1)), [POOL])
    state, _ = step(state, [("m/0", an_end("gpu-busy"))], 1.0)

    state, _ = observe(state, a_snapshot(1, at_s=1.5), 1.5)

    worker = state.workers["m/0"]
    assert worker.phase is Phase.BACKOFF
    assert worker.reason.endswith(
        "starts again when the condition holds, in 2 s at the earliest: wait 1 of 10, no failure is counted"
    )


def test_a_cuda_fault_restarts_once_on_the_same_gpu_and_then_moves_to_a_free_one() -> None:
    state, _ = applied(FleetState(snapshot=a_snapshot(2)), [POOL])
    state, first = step(state, [("m/0", an_end("cuda-fault"))], 1.0)
    state, again = observe(state, a_snapshot(2, at_s=9.0), 9.0)

    state, _ = step(state, [("m/0", an_end("cuda-fault", run=2))], 10.0)
    state, moved = observe(state, a_snapshot(2, at_s=30.0), 30.0)

    assert StartRun("m/0", 2) not in first
    assert (again, state.workers["m/0"].run_uuids) == ((StartRun("m/0", 2),), ("GPU-1",))
    assert moved[1:] == (StartRun("m/0", 3),)
    assert isinstance(moved[0], Note)
    assert moved[0].reason == "moves from GPU 0 to GPU 1: the second fault within 24 h"


def test_a_second_cuda_fault_with_no_free_gpu_fails_with_what_to_do() -> None:
    state, _ = applied(FleetState(snapshot=a_snapshot(1)), [POOL])
    for run, at_s in ((1, 1.0), (2, 20.0)):
        state, _ = step(state, [("m/0", an_end("cuda-fault", run=run))], at_s)
        state, _ = observe(state, a_snapshot(1, at_s=at_s + 10), at_s + 10)

    assert state.workers["m/0"].phase is Phase.FAILED
    assert "cuda-fault for the second time within 24 h on GPU 0" in state.workers["m/0"].reason
    assert "no other 1 GPUs of this kind are free" in state.workers["m/0"].reason


def test_a_pool_that_names_its_gpus_is_not_moved() -> None:
    state, _ = applied(FleetState(snapshot=a_snapshot(2)), [Pool(name="m", model="m", gpus=(0,), gpus_per_worker=1)])
    for run, at_s in ((1, 1.0), (2, 20.0)):
        state, _ = step(state, [("m/0", an_end("cuda-fault", run=run))], at_s)
        state, _ = observe(state, a_snapshot(2, at_s=at_s + 10), at_s + 10)

    assert "the pool names its GPUs" in state.workers["m/0"].reason


def test_excluded_and_taken_gpus_are_no_place_to_move_to() -> None:
    base = FleetState(snapshot=a_snapshot(3))
    other = Pool(name="o", model="m", gpus=(1,), gpus_per_worker=1)
    state, _ = applied(replace(base, terms=replace(base.terms, excluded=(2,))), [POOL, other])
    for run, at_s in ((1, 1.0), (2, 20.0)):
        state, _ = step(state, [("m/0", an_end("cuda-fault", run=run))], at_s)
        state, _ = observe(state, a_snapshot(3, at_s=at_s + 10), at_s + 10)

    assert state.workers["m/0"].phase is Phase.FAILED


def test_a_fault_a_day_later_is_again_the_first() -> None:
    worker, _ = after_end(WORKER, POOL, an_end("cuda-fault"), 0.0)

    later, _ = after_end(worker, POOL, an_end("cuda-fault"), FAULT_WINDOW_S)

    assert (later.faults, later.avoid) == ((FAULT_WINDOW_S,), ())


def test_a_command_forgets_waits_and_faults() -> None:
    state, _ = applied(FleetState(snapshot=a_snapshot(1)), [POOL])
    state, _ = step(state, [("m/0", BecameReady(1)), ("m/0", an_end("cuda-fault"))], 1.0)

    state, _ = step(state, [("m/0", StartAsked())], 2.0)

    assert state.workers["m/0"].faults == ()
