"""Placement by example: the cases that users got wrong, and what is said when it cannot be done."""

from __future__ import annotations

import time
from dataclasses import replace

from gpuward.config.fleet import Pool
from gpuward.policy.gpus.inventory import Gpu, Snapshot
from gpuward.policy.placement.place import place
from gpuward.policy.placement.plan import Plan

GIB = 1024**3


def a_host(count: int, *more: tuple[str, int], model: str = "H100-80GB") -> Snapshot:
    names = [model] * count + [name for name, times in more for _ in range(times)]
    return Snapshot(
        provider="simulated",
        state="ok",
        taken_at_s=0.0,
        gpus=tuple(
            Gpu(index=index, uuid=f"GPU-{index}", name=name, pci_bus_id=f"{index:02x}", total_bytes=80 * GIB)
            for index, name in enumerate(names)
        ),
    )


def a_pool(name: str, **keys: object) -> Pool:
    return Pool(name=name, model="org/model", **keys)  # type: ignore[arg-type]


def sets(plan: Plan) -> dict[str, tuple[int, ...]]:
    return {worker.name: worker.gpus for worker in plan.workers}


def codes(plan: Plan) -> list[tuple[str, str | None]]:
    return [(problem.code, problem.pool) for problem in plan.problems]


def the_seed(gpus_per_worker: int, tensor_parallel_size: int = 1) -> tuple[Pool, Pool]:
    return (
        a_pool("VllmWorker", workers=3, gpus_per_worker=gpus_per_worker, tensor_parallel_size=tensor_parallel_size),
        a_pool("PrefillWorker", first_gpu=3),
    )


def test_the_seed_gets_one_gpu_per_worker_and_the_offset_is_kept() -> None:
    plan = place(the_seed(1), a_host(8))

    assert sets(plan) == {
        "VllmWorker/0": (0,),
        "VllmWorker/1": (1,),
        "VllmWorker/2": (2,),
        "PrefillWorker/0": (3,),
    }
    assert (plan.gpus_needed, plan.gpus_available, plan.warnings) == (4, 8, ())


def test_the_seed_with_two_gpus_each_goes_around_the_offset_and_says_that_it_splits_the_range() -> None:
    plan = place(the_seed(2, tensor_parallel_size=2), a_host(8))

    assert sets(plan) == {
        "VllmWorker/0": (0, 1),
        "VllmWorker/1": (4, 5),
        "VllmWorker/2": (6, 7),
        "PrefillWorker/0": (3,),
    }
    assert [(warning.code, warning.pool) for warning in plan.warnings] == [("offset-splits", "PrefillWorker")]
    assert "GPU 2 stays free" in plan.warnings[0].message


def test_an_offset_that_pushed_nobody_away_is_no_reason_for_a_warning() -> None:
    plan = place(
        [a_pool("a", workers=2), a_pool("b", first_gpu=3), a_pool("c", gpus=(6, 7), gpus_per_worker=2)], a_host(8)
    )

    assert sets(plan)["b/0"] == (3,)
    assert plan.warnings == ()


def test_the_seed_with_three_gpus_each_is_refused_twice_with_both_sums() -> None:
    plan = place(the_seed(3), a_host(8))

    assert codes(plan) == [("parallel-size-mismatch", "VllmWorker"), ("too-few-gpus", "VllmWorker")]
    assert "2 of its 3 GPUs idle" in plan.problems[0].message
    assert "3 workers x 3 GPUs each = 9, + 1 for the other pools = 10, but this host has 8" in plan.problems[1].message
    assert "is per worker, not the pool's total" in plan.problems[1].message
    assert (plan.workers, plan.gpus_needed, plan.gpus_available) == ((), 10, 8)


def test_what_a_count_per_worker_is_need_not_be_told_where_each_has_one() -> None:
    plan = place([a_pool("a", workers=9)], a_host(8))

    assert codes(plan) == [("too-few-gpus", "a")]
    assert plan.problems[0].message.endswith("but this host has 8 (8 free for this pool); lower workers")


def test_a_pool_that_allows_idle_gpus_may_have_more_than_it_uses_but_never_fewer() -> None:
    more = place([a_pool("a", gpus_per_worker=3, tensor_parallel_size=1, allow_idle_gpus=True)], a_host(8))
    fewer = place([a_pool("a", gpus_per_worker=1, tensor_parallel_size=2, allow_idle_gpus=True)], a_host(8))

    assert sets(more) == {"a/0": (0, 1, 2)}
    assert codes(fewer) == [("parallel-size-mismatch", "a")]
    assert "lacks 1 GPUs" in fewer.problems[0].message


def test_a_claim_is_the_share_of_the_total_rounded_up() -> None:
    plan = place([a_pool("a", gpu_memory_utilization=0.3)], replace_total(a_host(1), 1001))

    assert plan.workers[0].claim_bytes == 301


def replace_total(host: Snapshot, total_bytes: int | None) -> Snapshot:
    return replace(host, gpus=tuple(replace(gpu, total_bytes=total_bytes) for gpu in host.gpus))


def test_a_gpu_that_does_not_tell_its_memory_gets_a_worker_a_zero_claim_and_a_warning() -> None:
    plan = place([a_pool("a")], replace_total(a_host(1), None))

    assert [worker.claim_bytes for worker in plan.workers] == [0]
    assert [warning.code for warning in plan.warnings] == ["gpu-memory-unknown"]


def test_a_pool_without_gpus_is_placed_on_none_even_where_there_is_no_inventory() -> None:
    nothing = Snapshot(provider="none", state="unavailable", taken_at_s=0.0, reason="no driver")

    plan = place([a_pool("proxy", engine="command", gpus_per_worker=0, workers=2)], nothing)

    assert sets(plan) == {"proxy/0": (), "proxy/1": ()}


def test_an_unavailable_inventory_is_a_problem_of_its_own_and_never_no_gpus() -> None:
    nothing = Snapshot(provider="nvml", state="unavailable", taken_at_s=0.0, reason="driver not loaded")

    plan = place([a_pool("a"), a_pool("b", gpus=(0,))], nothing)

    assert codes(plan) == [("inventory-unavailable", None)]
    assert "driver not loaded" in plan.problems[0].message


def test_a_stale_inventory_places_nothing() -> None:
    plan = place([a_pool("a")], replace(a_host(8), state="stale", reason="no answer for 12 s"))

    assert codes(plan) == [("inventory-unavailable", None)]


def test_a_lost_gpu_is_not_used_and_is_spoken_of() -> None:
    host = a_host(3)
    host = replace(host, gpus=(host.gpus[0], replace(host.gpus[1], health="lost", reason="XID 79"), host.gpus[2]))

    around = place([a_pool("a", workers=2)], host)
    named = place([a_pool("a", gpus=(1,))], host)
    too_many = place([a_pool("a", workers=3)], host)

    assert sets(around) == {"a/0": (0,), "a/1": (2,)}
    assert [warning.code for warning in around.warnings] == ["gpu-lost"]
    assert codes(named) == [("inventory-unavailable", "a")]
    assert "3, 1 of them lost (2 free for this pool)" in too_many.problems[0].message


def test_what_its_workers_have_already_counts_as_free_for_a_pool_that_grows_too_far() -> None:
    current = {"a/0": ("GPU-0",), "a/1": ("GPU-1",), "b/0": ("GPU-2",)}

    plan = place([a_pool("a", workers=9), a_pool("b")], a_host(8), current=current)

    assert "this host has 8 (7 free for this pool)" in plan.problems[0].message


def test_excluded_gpus_are_not_used_and_naming_one_is_refused() -> None:
    pools = [a_pool("a", workers=2), a_pool("b", gpus=("GPU-0",))]

    plan = place(pools, a_host(4), excluded=[0, "GPU-2"])
    rest = place(pools[:1], a_host(4), excluded=[0, "GPU-2"])

    assert codes(plan) == [("gpu-excluded", "b")]
    assert sets(rest) == {"a/0": (1,), "a/1": (3,)}
    assert rest.gpus_available == 2


def test_an_exclusion_of_a_gpu_that_is_not_there_is_a_warning() -> None:
    plan = place([a_pool("a")], a_host(2), excluded=[9])

    assert [warning.code for warning in plan.warnings] == ["unknown-excluded-gpu"]


def test_a_gpu_that_is_not_there_is_named_with_those_that_are() -> None:
    by_list = place([a_pool("a", gpus=(8,))], a_host(8))
    by_offset = place([a_pool("a", first_gpu=7, workers=2)], a_host(8))

    assert codes(by_list) == codes(by_offset) == [("unknown-gpu", "a")]
    assert "needs GPU 8, but this host has GPUs 0 to 7" in by_list.problems[0].message


def test_two_pools_on_the_same_named_gpu_are_refused_with_both_names() -> None:
    plan = place([a_pool("a", gpus=(0,)), a_pool("b", first_gpu=0)], a_host(8))

    assert codes(plan) == [("gpu-conflict", "b")]
    assert "a/0" in plan.problems[0].message


def test_one_gpu_named_twice_is_a_conflict_of_the_pool_with_itself() -> None:
    plan = place([a_pool("a", gpus=(1, "GPU-1"), workers=2)], a_host(8))

    assert codes(plan) == [("gpu-conflict", "a")]


def test_named_gpus_must_be_as_many_as_the_workers_need() -> None:
    plan = place([a_pool("a", gpus=(0, 1, 2), workers=2)], a_host(8))

    assert codes(plan) == [("gpu-list-size", "a")]
    assert "names 3 GPUs, but 2 workers x 1 GPUs each = 2" in plan.problems[0].message


def test_a_pool_scaled_to_zero_keeps_its_named_gpus_without_complaint() -> None:
    plan = place([a_pool("a", gpus=(0, 1), workers=0), a_pool("b")], a_host(2))

    assert sets(plan) == {"b/0": (0,)}


def test_all_problems_are_listed_not_only_the_first() -> None:
    pools = [
        a_pool("a", gpus=(9,)),
        a_pool("b", gpus_per_worker=1, tensor_parallel_size=2),
        a_pool("c", workers=9),
        a_pool("d", gpus=(7,)),
    ]

    plan = place(pools, a_host(8), excluded=[7])

    assert sorted(codes(plan)) == [
        ("gpu-excluded", "d"),
        ("parallel-size-mismatch", "b"),
        ("too-few-gpus", "c"),
        ("unknown-gpu", "a"),
    ]


def test_sharing_workers_fill_one_gpu_before_they_take_the_next() -> None:
    pools = [a_pool("a", share=True, workers=3, gpu_memory_utilization=0.4), a_pool("b")]

    plan = place(pools, a_host(3))

    assert sets(plan) == {"a/0": (0,), "a/1": (0,), "a/2": (1,), "b/0": (2,)}
    assert plan.gpus_needed == 3


def test_sharing_workers_on_one_named_gpu_are_refused_when_their_claims_exceed_it() -> None:
    fits = place([a_pool("a", share=True, gpus=(0,), workers=3, gpu_memory_utilization=0.33)], a_host(8))
    exceeds = place([a_pool("a", share=True, gpus=(0,), workers=3, gpu_memory_utilization=0.4)], a_host(8))

    assert sets(fits) == {"a/0": (0,), "a/1": (0,), "a/2": (0,)}
    assert codes(exceeds) == [("claims-exceed-gpu", "a")]
    assert "3 workers x 1 GPUs x gpu-memory-utilization 0.4 = 1.2" in exceeds.problems[0].message


def test_claims_that_add_up_to_exactly_one_fit_whatever_binary_fractions_make_of_them() -> None:
    claims = {"a": 0.34, "b": 0.56, "c": 0.1}
    pools = [a_pool(name, share=True, gpus=(0,), gpu_memory_utilization=claim) for name, claim in claims.items()]

    plan = place(pools, a_host(1))

    assert plan.ok


def test_the_claims_of_another_sharing_pool_count() -> None:
    pools = [
        a_pool("a", share=True, gpus=(0,), gpu_memory_utilization=0.6),
        a_pool("b", share=True, gpus=(0,), gpu_memory_utilization=0.5),
    ]

    plan = place(pools, a_host(8))

    assert codes(plan) == [("claims-exceed-gpu", "b")]
    assert "+ 0.6 of pool 'a'" in plan.problems[0].message


def test_a_lower_limit_of_claims_holds_for_shared_gpus_only() -> None:
    shared = place([a_pool("a", share=True, gpu_memory_utilization=0.9)], a_host(8), claims_per_gpu=0.8)
    own = place([a_pool("a", gpu_memory_utilization=0.9)], a_host(8), claims_per_gpu=0.8)

    assert codes(shared) == [("claims-exceed-gpu", "a")]
    assert own.ok


def test_a_sharing_pool_does_not_join_a_pool_that_does_not_share() -> None:
    plan = place([a_pool("a", gpus=(0,)), a_pool("b", share=True, gpus=(0,))], a_host(8))

    assert codes(plan) == [("gpu-conflict", "b")]


def test_sharing_workers_without_room_are_refused_with_the_sum() -> None:
    plan = place([a_pool("a", share=True, workers=5, gpu_memory_utilization=0.5)], a_host(2))

    assert codes(plan) == [("too-few-gpus", "a")]
    assert "4 of 5 workers have room" in plan.problems[0].message
    assert plan.gpus_needed == 3


def test_one_worker_never_gets_gpus_of_two_models_unless_it_names_them() -> None:
    host = a_host(1, ("L40S-48GB", 2))

    plan = place([a_pool("a", gpus_per_worker=2)], host)
    refused = place([a_pool("a", gpus_per_worker=2), a_pool("b", gpus_per_worker=1)], a_host(1, ("L40S-48GB", 1)))
    named = place([a_pool("a", gpus_per_worker=2, gpus=(0, 1))], host)

    assert sets(plan) == {"a/0": (1, 2)}
    assert codes(refused)[0] == ("too-few-gpus", "a")
    assert sets(named) == {"a/0": (0, 1)}
    assert [warning.code for warning in named.warnings] == ["mixed-gpus"]


def test_neighbours_are_preferred_and_their_lack_is_a_warning() -> None:
    pools = [a_pool("a", gpus=(1,)), a_pool("b", gpus_per_worker=2)]

    roomy = place(pools, a_host(4))
    tight = place(pools, a_host(3))

    assert sets(roomy)["b/0"] == (2, 3)
    assert sets(tight)["b/0"] == (0, 2)
    assert [warning.code for warning in tight.warnings] == ["gpus-not-adjacent"]


def test_workers_keep_what_they_have_when_another_pool_comes_before_them() -> None:
    current = {"b/0": ("GPU-0",), "b/1": ("GPU-1",)}

    plan = place([a_pool("a", workers=2), a_pool("b", workers=2)], a_host(4), current=current)

    assert sets(plan) == {"a/0": (2,), "a/1": (3,), "b/0": (0,), "b/1": (1,)}


def test_a_sharing_worker_keeps_its_gpu_among_those_that_its_pool_names() -> None:
    pool = a_pool("a", share=True, gpus=(0, 1), gpu_memory_utilization=0.4)

    plan = place([pool], a_host(4), current={"a/0": ("GPU-1",)})

    assert sets(plan) == {"a/0": (1,)}


def test_a_worker_moves_when_its_gpu_is_named_by_another_excluded_lost_or_of_the_wrong_number() -> None:
    current = {"b/0": ("GPU-0",)}
    host = a_host(4)
    lost = replace(host, gpus=(replace(host.gpus[0], health="lost"), *host.gpus[1:]))

    named = place([a_pool("a", gpus=(0,)), a_pool("b")], host, current=current)
    excluded = place([a_pool("b")], host, excluded=[0], current=current)
    broken = place([a_pool("b")], lost, current=current)
    resized = place([a_pool("b", gpus_per_worker=2)], host, current=current)

    assert [sets(plan)["b/0"] for plan in (named, excluded, broken, resized)] == [(1,), (1,), (1,), (0, 1)]


def test_512_workers_on_1024_gpus_are_placed_within_the_budget() -> None:
    host = a_host(1024)
    pools = [a_pool(f"p{number}", gpus_per_worker=2) for number in range(512)]

    started_s = time.process_time()
    plan = place(pools, host)
    taken_s = time.process_time() - started_s

    assert len(sets(plan)) == 512
    assert taken_s < 1.0, "the budget is 0.05 s, measured by `make bench`; this only catches a square of it"
