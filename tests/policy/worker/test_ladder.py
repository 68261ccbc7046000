"""Coming back smaller."""

from __future__ import annotations

import pytest
from msgspec import structs
from tests.policy.fleets import GIB, a_snapshot, applied

from gpuward.config.fleet import Fleet, Pool, RestartPolicy
from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.fleet.step import FleetState, observe, reset, step
from gpuward.policy.worker.ladder import effective, next_step, said
from gpuward.policy.worker.life import Adapted, LadderStep, Phase, RunEnded, StartRun, Worker

POOL = Pool(name="m", model="m", gpus_per_worker=1, on_oom="adapt", restart=RestartPolicy(max_failures=1000))


def an_end(cause: str = "gpu-oom-runtime", *, permanent: bool = False, offer_tokens: int | None = None) -> RunEnded:
    exit_ = LastExit(run=1, cause=cause, code=1, signal=None, at=0.0)
    return RunEnded(run=1, exit=exit_, permanent=permanent, reason=cause, offer_tokens=offer_tokens)


def test_the_whole_ladder_goes_down_rung_by_rung_and_ends() -> None:
    pool, steps = POOL, []
    while (taken := next_step(pool, an_end())) is not None:
        steps.append(taken)
        pool = effective(POOL, steps)

    assert [said(one) for one in steps[:2]] == [
        "gpu-memory-utilization 0.9 -> 0.87",
        "gpu-memory-utilization 0.87 -> 0.84",
    ]
    assert [said(one) for one in steps[13:]] == [
        "gpu-memory-utilization 0.51 -> 0.5",
        "max-num-seqs 256 -> 128",
        "max-num-seqs 128 -> 64",
        "max-num-seqs 64 -> 32",
        "max-num-seqs 32 -> 16",
        "max-num-batched-tokens 8192 -> 4096",
        "max-num-batched-tokens 4096 -> 2048",
        "enforce-eager",
    ]
    assert pool.gpu_memory_utilization == 0.5
    assert pool.extra_args == ("--max-num-seqs", "16", "--max-num-batched-tokens", "2048", "--enforce-eager")


@pytest.mark.parametrize("words", [("--max-num-seqs", "8"), ("--max-num-seqs=8",), ("--max_num_seqs", "8")])
def test_what_the_pool_states_is_where_the_ladder_starts(words: tuple[str, ...]) -> None:
    pool = structs.replace(POOL, gpu_memory_utilization=0.5, extra_args=("--seed", "1", *words))

    taken = next_step(pool, an_end())

    assert taken == LadderStep(key="max-num-batched-tokens", before=8192, value=4096)


@pytest.mark.parametrize("words", [("--max-num-seqs", "64"), ("--max-num-seqs=64",)])
def test_a_lowered_flag_replaces_what_the_pool_states(words: tuple[str, ...]) -> None:
    pool = structs.replace(POOL, gpu_memory_utilization=0.5, extra_args=("--seed", "1", *words, "--x"))

    taken = next_step(pool, an_end())

    assert taken is not None
    assert effective(pool, [taken]).extra_args == ("--seed", "1", "--x", "--max-num-seqs", "32")


def test_the_length_that_the_message_offers_is_taken_only_where_the_pool_allows_it() -> None:
    refused = next_step(POOL, an_end("kv-cache-too-small", offer_tokens=12000))
    too_short = next_step(
        structs.replace(POOL, min_max_model_len=16000), an_end("kv-cache-too-small", offer_tokens=12000)
    )
    taken = next_step(structs.replace(POOL, min_max_model_len=8000), an_end("kv-cache-too-small", offer_tokens=12000))

    assert (refused, too_short) == (None, None)
    assert taken is not None
    assert effective(POOL, [taken]).max_model_len == 12000


@pytest.mark.parametrize("cause", ["crash", "gpu-busy", "host-oom", "hang"])
def test_other_causes_lower_nothing(cause: str) -> None:
    assert next_step(POOL, an_end(cause)) is None


def test_a_pool_that_does_not_ask_for_it_and_a_command_are_not_adapted() -> None:
    assert next_step(structs.replace(POOL, on_oom="restart"), an_end()) is None
    assert next_step(structs.replace(POOL, engine="command"), an_end()) is None


def after_one_oom() -> FleetState:
    state, _ = applied(FleetState(snapshot=a_snapshot(2)), [POOL])
    state, effects = step(state, [("m/0", an_end(permanent=True))], 1.0)
    assert Adapted("m/0", 1, LadderStep(key="gpu-memory-utilization", before=0.9, value=0.87)) in effects
    return state


def test_a_step_is_taken_told_and_the_next_start_needs_less() -> None:
    state = after_one_oom()
    worker = state.workers["m/0"]

    state, effects = observe(state, a_snapshot(2, at_s=20.0, used={0: int(9.9 * GIB)}), 20.0)

    assert worker.phase is Phase.RELEASING
    assert "comes back smaller: gpu-memory-utilization 0.9 -> 0.87" in worker.reason
    assert effects == (StartRun("m/0", 2),)
    assert state.pool_of(state.workers["m/0"]).gpu_memory_utilization == 0.87


def test_a_permanent_kv_cache_failure_that_is_not_allowed_to_shrink_fails() -> None:
    state, _ = applied(FleetState(snapshot=a_snapshot(1)), [POOL])

    state, _ = step(state, [("m/0", an_end("kv-cache-too-small", permanent=True))], 1.0)

    assert state.workers["m/0"].phase is Phase.FAILED


def test_reset_undoes_the_steps_and_starts_again() -> None:
    state, _ = observe(after_one_oom(), a_snapshot(2, at_s=20.0), 20.0)

    state, _ = reset(state, ["m/0"], 21.0)

    worker: Worker = state.workers["m/0"]
    assert worker.ending is not None
    assert (worker.steps, worker.ending.then, worker.phase) == ((), "start", Phase.STOPPING)
    assert "1 steps of its ladder undone by command" in worker.reason


def test_another_definition_undoes_the_steps_and_another_number_of_workers_does_not() -> None:
    state = after_one_oom()

    scaled, _ = applied(state, [structs.replace(POOL, workers=2)], Fleet(pools=(POOL,)), 2.0)
    changed, _ = applied(state, [structs.replace(POOL, max_model_len=4096)], Fleet(pools=(POOL,)), 2.0)

    assert len(scaled.workers["m/0"].steps) == 1
    assert changed.workers["m/0"].steps == ()
