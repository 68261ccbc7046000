"""Compute modes and MIG: which GPUs no worker can use, and which no two can share."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.policy.fleets import a_gpu, a_snapshot, applied

from gpuward.config.fleet import Pool
from gpuward.policy.fleet.step import FleetState, settle
from gpuward.policy.gpus.inventory import Gpu, Snapshot, Vitals
from gpuward.policy.gpus.modes import barred_gpus
from gpuward.policy.placement.place import place
from gpuward.policy.placement.plan import Plan
from gpuward.policy.worker.life import Phase

MIG = Vitals(mig=True)
PROHIBITED = Vitals(compute_mode="prohibited")
ALONE = Vitals(compute_mode="exclusive-process")


def a_host(*vitals: Vitals) -> Snapshot:
    gpus = tuple(replace(a_gpu(index), vitals=one) for index, one in enumerate(vitals))
    return replace(a_snapshot(), gpus=gpus)


def a_pool(**known: object) -> Pool:
    return Pool(name="a", model="m", engine="simulated", **known)  # type: ignore[arg-type]


def placed(pool: Pool, host: Snapshot, **current: tuple[str, ...]) -> Plan:
    had = {name.replace("_", "/"): uuids for name, uuids in current.items()}
    return place([pool], host, closed=barred_gpus(host), current=had)


@pytest.mark.parametrize(
    ("vitals", "why"),
    [
        (MIG, "GPU 0 is in MIG mode: CUDA sees only its instances, and gpuward places whole GPUs"),
        (PROHIBITED, "GPU 0 is in compute mode prohibited: CUDA refuses every process"),
    ],
    ids=["mig", "prohibited"],
)
def test_a_gpu_whose_mode_bars_every_worker_is_left_out_and_named_with_the_way_out(vitals: Vitals, why: str) -> None:
    host = a_host(vitals, Vitals(mig=False, compute_mode="default"))

    around = placed(a_pool(), host)
    short = placed(a_pool(workers=2), host)
    named = placed(a_pool(gpus=(0,)), host)

    assert [worker.gpus for worker in around.workers] == [(1,)]
    assert [(warning.code, why in warning.message) for warning in around.warnings] == [("gpu-closed", True)]
    assert "2, 1 of them quarantined, cordoned or barred by their mode (1 free" in short.problems[0].message
    assert why in named.problems[0].message
    assert "nvidia-smi -i GPU-0 -" in named.problems[0].message


def test_what_the_driver_does_not_tell_bars_nobody() -> None:
    plan = placed(a_pool(workers=2, share=True, gpu_memory_utilization=0.4), a_host(Vitals()))

    assert plan.ok
    assert plan.warnings == ()


def test_a_worker_alone_may_have_a_gpu_that_is_for_one_process() -> None:
    plan = placed(a_pool(workers=2), a_host(ALONE, ALONE))

    assert [worker.gpus for worker in plan.workers] == [(0,), (1,)]


def test_workers_that_share_go_around_a_gpu_that_is_for_one_process() -> None:
    pool = a_pool(workers=2, share=True, gpu_memory_utilization=0.4)

    plan = placed(pool, a_host(ALONE, Vitals(compute_mode="default")))

    assert [worker.gpus for worker in plan.workers] == [(1,), (1,)]


@pytest.mark.parametrize("keys", [{}, {"gpus": (0,)}], ids=["any", "named"])
def test_workers_that_share_are_refused_where_every_gpu_is_for_one_process(keys: dict[str, object]) -> None:
    plan = placed(a_pool(workers=2, share=True, gpu_memory_utilization=0.4, **keys), a_host(ALONE))

    assert [problem.code for problem in plan.problems] == ["compute-mode" if keys else "too-few-gpus"]
    assert "GPU 0: in compute mode exclusive-process for one process alone" in plan.problems[0].message
    assert "nvidia-smi -c DEFAULT lets them share, or leave out share = true" in plan.problems[0].message


@pytest.mark.parametrize("keys", [{}, {"gpus": (0,)}], ids=["any", "named"])
def test_workers_that_share_a_gpu_already_are_not_moved_by_a_mode_set_later(keys: dict[str, object]) -> None:
    pool = a_pool(workers=2, share=True, gpu_memory_utilization=0.4, **keys)

    plan = placed(pool, a_host(ALONE, Vitals()), a_0=("GPU-0",), a_1=("GPU-0",))

    assert [worker.gpus for worker in plan.workers] == [(0,), (0,)]


def a_barred(gpu: Gpu) -> Gpu:
    return replace(gpu, vitals=PROHIBITED)


def test_a_worker_whose_gpu_is_prohibited_meanwhile_waits_and_starts_when_it_is_allowed_again() -> None:
    host = a_snapshot(1)
    barred = barred_gpus(replace(host, gpus=tuple(map(a_barred, host.gpus))))

    held, _ = applied(replace(FleetState(snapshot=host), closed=barred), [a_pool()])
    allowed, _ = settle(replace(held, closed={}), 1.0)

    assert held.workers["a/0"].phase is Phase.BLOCKED
    assert "held back: GPU 0 is in compute mode prohibited" in held.workers["a/0"].reason
    assert allowed.workers["a/0"].phase is Phase.STARTING
