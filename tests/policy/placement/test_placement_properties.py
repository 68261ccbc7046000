"""What holds of every placement, whatever the fleet and the host."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gpuward.config.fleet import Pool
from gpuward.policy.gpus.inventory import Gpu, Snapshot
from gpuward.policy.placement.place import place

GIB = 1024**3
KINDS = (("H100-80GB", 80 * GIB), ("L40S-48GB", 48 * GIB + 1))


@st.composite
def hosts(draw: st.DrawFn) -> Snapshot:
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=10))
    return Snapshot(
        provider="simulated",
        state="ok",
        taken_at_s=0.0,
        gpus=tuple(
            Gpu(index=index, uuid=f"GPU-{index}", name=name, pci_bus_id=f"{index:02x}", total_bytes=total)
            for index, (name, total) in enumerate(kinds)
        ),
    )


@st.composite
def pools(draw: st.DrawFn, name: str) -> Pool:
    count = draw(st.integers(1, 3))
    workers = draw(st.integers(0, 4))
    named = draw(st.sampled_from(("", "", "", "gpus", "first-gpu")))
    gpus = tuple(draw(st.permutations(range(10)))[: workers * count]) if named == "gpus" else ()
    return Pool(
        name=name,
        model="m",
        workers=workers,
        gpus_per_worker=count,
        share=draw(st.booleans()),
        gpu_memory_utilization=draw(st.sampled_from((0.1, 0.25, 0.3, 0.5, 0.7, 1.0))),
        gpus=gpus,
        first_gpu=draw(st.integers(0, 9)) if named == "first-gpu" else None,
    )


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Pool, ...]:
    return tuple(draw(pools(name)) for name in "abcd"[: draw(st.integers(1, 4))])


EXCLUDED = st.lists(st.integers(0, 9), max_size=2)
LIMITS = st.sampled_from((0.5, 0.9, 1.0))


@settings(max_examples=300, deadline=None)
@given(fleets(), hosts(), EXCLUDED, LIMITS)
def test_a_plan_gives_each_worker_its_number_of_usable_gpus_and_shares_only_what_may_be_shared(
    fleet: tuple[Pool, ...], host: Snapshot, excluded: list[int], limit: float
) -> None:
    plan = place(fleet, host, excluded=excluded, claims_per_gpu=limit)

    by_name = {pool.name: pool for pool in fleet}
    holders: dict[str, list[Pool]] = {}
    for worker in plan.workers:
        pool = by_name[worker.pool]
        assert len(worker.gpu_uuids) == len(set(worker.gpu_uuids)) == pool.device_count
        assert not set(worker.gpus) & set(excluded)
        assert max(worker.gpus) < len(host.gpus)
        for uuid in worker.gpu_uuids:
            holders.setdefault(uuid, []).append(pool)
    for sharing in holders.values():
        if len(sharing) > 1:
            assert all(pool.share for pool in sharing)
            assert math.fsum(pool.gpu_memory_utilization for pool in sharing) <= limit + 1e-9
    assert plan.gpus_available == len(host.gpus) - len(set(excluded) & set(range(len(host.gpus))))
    if plan.ok:
        assert plan.gpus_needed == len(holders)


@settings(max_examples=200, deadline=None)
@given(fleets(), hosts(), EXCLUDED)
def test_it_is_all_workers_or_none_and_a_refusal_says_why(
    fleet: tuple[Pool, ...], host: Snapshot, excluded: list[int]
) -> None:
    plan = place(fleet, host, excluded=excluded)

    wanted = [name for pool in fleet for name in pool.worker_names]
    assert [worker.name for worker in plan.workers] == ([] if plan.problems else wanted)
    assert all(problem.message and problem.code for problem in plan.problems)


@settings(max_examples=200, deadline=None)
@given(fleets(), hosts(), EXCLUDED)
def test_the_same_question_has_the_same_answer_and_asking_again_moves_nobody(
    fleet: tuple[Pool, ...], host: Snapshot, excluded: list[int]
) -> None:
    first = place(fleet, host, excluded=excluded)
    again = place(fleet, host, excluded=excluded)
    current = {worker.name: worker.gpu_uuids for worker in first.workers}
    kept = place(fleet, host, excluded=excluded, current=current)

    assert again == first
    if first.ok:
        assert kept.workers == first.workers


@settings(max_examples=200, deadline=None)
@given(fleets(), hosts(), st.lists(st.integers(0, 4), min_size=4, max_size=4))
def test_scaling_pools_leaves_the_survivors_where_they_are(
    fleet: tuple[Pool, ...], host: Snapshot, workers: list[int]
) -> None:
    before = place(fleet, host)
    current = {worker.name: worker.gpu_uuids for worker in before.workers}
    scaled = tuple(
        replace(pool, workers=count)
        for pool, count in zip(fleet, workers, strict=False)
        if not pool.gpus and pool.first_gpu is None
    )

    after = place(scaled, host, current=current)

    moved = [worker.name for worker in after.workers if current.get(worker.name, worker.gpu_uuids) != worker.gpu_uuids]
    assert moved == []


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 16))
def test_one_exclusive_pool_fits_exactly_when_the_product_does(workers: int, each: int, gpus: int) -> None:
    host = Snapshot(
        provider="simulated",
        state="ok",
        taken_at_s=0.0,
        gpus=tuple(
            Gpu(index=index, uuid=f"GPU-{index}", name="H100", pci_bus_id="", total_bytes=80 * GIB)
            for index in range(gpus)
        ),
    )

    plan = place([Pool(name="a", model="m", workers=workers, gpus_per_worker=each)], host)

    assert plan.ok == (workers * each <= gpus)
    assert plan.gpus_needed == workers * each
    taken = Counter(uuid for worker in plan.workers for uuid in worker.gpu_uuids)
    assert all(times == 1 for times in taken.values())
