"""The digest of what a run was started with, and what is told of a run that the fleet no longer asks for."""

from __future__ import annotations

import pytest
from msgspec import structs

from gpuward.config.fleet import Pool, RestartPolicy
from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.worker.definition import definition, outdated
from gpuward.policy.worker.life import Goal, Phase, RunEnded, Worker
from gpuward.policy.worker.step import begin_run, step

POOL = Pool(name="m", model="org/m", gpus_per_worker=2)


@pytest.mark.parametrize(
    "change",
    [
        {"workers": 7},
        {"restart": RestartPolicy(max_failures=1)},
        {"stop_timeout_s": 1.0},
        {"tensor_parallel_size": 2},
        {"first_gpu": 4},
        {"gpu_memory_utilization": 0.9},
    ],
)
def test_what_the_process_never_sees_is_no_part_of_its_definition(change: dict[str, object]) -> None:
    other = structs.replace(POOL, **change)

    assert definition(other) == definition(POOL)


@pytest.mark.parametrize("change", [{"env": {"A": "1"}}, {"port": 1234}, {"gpus_per_worker": 1}, {"model": "org/n"}])
def test_what_the_process_was_started_with_is_its_definition(change: dict[str, object]) -> None:
    other = structs.replace(POOL, **change)

    assert definition(other) != definition(POOL)


def test_the_digest_is_the_one_that_earlier_versions_wrote() -> None:
    assert definition(POOL) == "aae222ed00745c11"


def test_a_run_of_an_earlier_definition_is_told_with_the_key() -> None:
    worker, _ = begin_run(Worker(name="m/0", pool="m", index=0), POOL, now_s=0.0)
    changed = structs.replace(POOL, max_model_len=4096)

    assert outdated(worker, POOL, None) == ""
    assert "max-model-len changed" in outdated(worker, changed, POOL)
    assert definition(changed) in outdated(worker, changed, None)


def test_a_run_on_other_gpus_than_its_own_is_told() -> None:
    worker = Worker(name="m/0", pool="m", index=0, run=3, run_uuids=("GPU-0",), device_uuids=("GPU-1",))

    assert "run 3 is on GPU-0" in outdated(worker, POOL, None)


def test_an_end_that_is_learnt_late_is_judged_by_when_it_happened() -> None:
    ready = Worker(name="m/0", pool="m", index=0, goal=Goal.UP, phase=Phase.READY, run=1, ready_since_s=0.0)
    exit_ = LastExit(run=1, cause="crash", code=1, signal=None, at=0.0)
    ended = RunEnded(run=1, exit=exit_, permanent=False, reason="crash", ended_s=5.0)

    after, _ = step(ready, ended, POOL, now_s=10_000.0)

    assert after.consecutive == 1
    assert after.not_before_s > 10_000.0
