"""Breach, growth and pressure: told after several samples in a row, acted upon rarely, never on what is not known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from gpuward.config.host import WatchSettings
from gpuward.policy.gpus.inventory import Gpu, GpuProcess, Snapshot
from gpuward.policy.gpus.watch import Judgement, Use, Watch, judge

GIB = 1024**3
TOTAL = 80 * GIB
CLAIM = 40 * GIB
LIMIT = CLAIM + int(0.03 * TOTAL)
"""3 % of 80 GiB are 2.4 GiB: more than the 2 GiB."""

TERMS = WatchSettings()


def a_gpu(used_bytes: int = 0, index: int = 0) -> Gpu:
    return Gpu(
        index=index,
        uuid=f"GPU-{index}",
        name="H100",
        pci_bus_id=f"0000:{index:02x}:00.0",
        total_bytes=TOTAL,
        used_bytes=used_bytes,
        free_bytes=TOTAL - used_bytes,
        processes=(GpuProcess(pid=77, used_bytes=used_bytes, name="trainer"),) if used_bytes else (),
    )


def a_snapshot(*gpus: Gpu) -> Snapshot:
    return Snapshot(provider="simulated", state="ok", taken_at_s=0.0, gpus=gpus)


def a_use(used_bytes: int | None, **known: object) -> Use:
    use = Use(worker="a/0", run=1, uuid="GPU-0", used_bytes=used_bytes, claim_bytes=CLAIM, on_breach="warn")
    return replace(use, **known)  # type: ignore[arg-type]


def watched(uses: Sequence[Use], watch: Watch | None = None, start_s: float = 0.0) -> Judgement:
    """Judge one use per sample, a second apart; return the last watch with all news."""
    judged = Judgement(watch or Watch())
    for at, use in enumerate(uses):
        after = judge(judged.watch, a_snapshot(a_gpu(use.used_bytes or 0)), [use], TERMS, start_s + at)
        judged = Judgement(after.watch, judged.notices + after.notices, judged.acts + after.acts)
    return judged


def test_three_samples_over_claim_and_slack_are_a_breach_with_the_numbers() -> None:
    judged = watched([a_use(LIMIT + GIB)] * 3)

    assert [(one.kind, one.worker, one.gpu) for one in judged.notices] == [("memory-breach", "a/0", 0)]
    assert "holds 43.4 GiB on GPU 0: more than its claim of 40.0 GiB and 2.4 GiB of slack" in judged.notices[0].reason
    assert judged.watch.of_workers() == {"a/0": [judged.notices[0].reason]}
    assert judged.acts == ()


def test_two_samples_over_and_one_at_the_limit_are_none() -> None:
    uses = [a_use(LIMIT + 1), a_use(LIMIT + 1), a_use(LIMIT), a_use(LIMIT + 1), a_use(LIMIT + 1)]

    assert watched(uses).notices == ()


def test_the_slack_is_bytes_on_a_small_gpu() -> None:
    small = replace(a_gpu(), total_bytes=24 * GIB, free_bytes=4 * GIB)
    use = a_use(20 * GIB + 2 * GIB, claim_bytes=20 * GIB)

    judged = Judgement(Watch())
    for at in range(5):
        judged = judge(judged.watch, a_snapshot(small), [use], TERMS, float(at))

    assert judged.watch.of_workers() == {}


def test_a_breach_is_over_only_one_percent_below_the_limit() -> None:
    breached = watched([a_use(LIMIT + GIB)] * 3).watch

    near = watched([a_use(LIMIT - int(0.009 * TOTAL))] * 3, breached)
    below = watched([a_use(LIMIT - int(0.011 * TOTAL))], near.watch)

    assert near.notices == ()
    assert [one.kind for one in below.notices] == ["memory-breach-over"]
    assert below.watch.of_workers() == {}


def test_growth_since_it_was_ready_is_told_once_though_within_the_claim() -> None:
    judged = watched([a_use(30 * GIB), *[a_use(33 * GIB)] * 5])

    assert [one.kind for one in judged.notices] == ["memory-growth"]
    assert "has grown by 3.0 GiB to 33.0 GiB on GPU 0" in judged.notices[0].reason


def test_a_new_run_is_measured_from_its_own_start() -> None:
    old = watched([a_use(10 * GIB)]).watch

    assert watched([a_use(30 * GIB, run=2)] * 5, old).notices == ()


@pytest.mark.parametrize("what", ["drain", "restart"])
def test_a_pool_that_says_so_ends_the_run(what: str) -> None:
    judged = watched([a_use(LIMIT + GIB, on_breach=what)] * 8)

    assert [(act.worker, act.run, act.what) for act in judged.acts] == [("a/0", 1, what)]
    assert "on 3 samples in a row" in judged.acts[0].reason


def test_one_action_per_gpu_within_the_pause_whichever_run_it_is() -> None:
    first = watched([a_use(LIMIT + GIB, on_breach="restart")] * 3)

    soon = watched([a_use(LIMIT + GIB, on_breach="restart", run=2)] * 3, first.watch, start_s=598.0)
    later = watched([a_use(LIMIT + GIB, on_breach="restart", run=2)], soon.watch, start_s=603.0)

    assert (len(first.acts), len(soon.acts), len(later.acts)) == (1, 0, 1)
    assert [one.kind for one in soon.notices] == ["memory-breach"]


def test_what_is_to_be_done_again_about_the_same_breach_says_so_and_another_breach_is_new() -> None:
    over, within = a_use(LIMIT + GIB, on_breach="restart"), a_use(GIB, on_breach="restart")

    first = watched([over] * 3)
    lasting = watched([over], first.watch, start_s=700.0)
    ended = watched([within] * 3, lasting.watch, start_s=701.0)
    anew = watched([over] * 3, ended.watch, start_s=1400.0)

    assert [one.acts[0].again for one in (first, lasting, anew)] == [False, True, False]


@pytest.mark.parametrize(
    "snapshot",
    [
        replace(a_snapshot(a_gpu(LIMIT + GIB)), state="stale"),
        a_snapshot(replace(a_gpu(LIMIT + GIB), settling=True)),
        a_snapshot(replace(a_gpu(LIMIT + GIB), health="lost")),
        a_snapshot(replace(a_gpu(LIMIT + GIB), total_bytes=None, free_bytes=None)),
    ],
    ids=["stale", "settling", "lost", "unified"],
)
def test_what_is_not_known_for_sure_is_not_judged(snapshot: Snapshot) -> None:
    judged = Judgement(Watch())

    for at in range(5):
        judged = judge(judged.watch, snapshot, [a_use(LIMIT + GIB, on_breach="restart")], TERMS, float(at))
        assert (judged.notices, judged.acts) == ((), ())

    assert judged.watch.of_workers() == {}


def test_memory_that_the_driver_does_not_tell_is_not_judged() -> None:
    assert watched([a_use(None)] * 5).notices == ()
    assert watched([a_use(LIMIT + GIB, claim_bytes=None)] * 5).notices == ()


def test_a_settling_sample_between_neither_counts_nor_clears() -> None:
    watch = watched([a_use(LIMIT + GIB)] * 2).watch
    unsure = judge(watch, a_snapshot(replace(a_gpu(), settling=True)), [a_use(0)], TERMS, 2.0)

    judged = watched([a_use(LIMIT + GIB)], unsure.watch)

    assert [one.kind for one in judged.notices] == ["memory-breach"]


def test_a_gpu_filled_by_somebody_else_is_under_pressure_and_says_by_whom() -> None:
    full = a_snapshot(a_gpu(79 * GIB))
    judged = Judgement(Watch())
    notices = []

    for at in range(4):
        judged = judge(judged.watch, full, [a_use(30 * GIB, on_breach="restart")], TERMS, float(at))
        notices += judged.notices
        assert judged.acts == ()

    assert [(one.kind, one.worker) for one in notices] == [("gpu-pressure", None)]
    assert "1.0 GiB of 80.0 GiB free although its workers claim only 40.0 GiB" in notices[0].reason
    assert "pid 77 (trainer, 79.0 GiB)" in notices[0].reason
    relieved = judge(judged.watch, a_snapshot(a_gpu(70 * GIB)), [a_use(30 * GIB)], TERMS, 9.0)
    assert [one.kind for one in relieved.notices] == ["gpu-pressure-over"]


def test_a_gpu_that_its_workers_claim_whole_is_full_as_meant() -> None:
    judged = Judgement(Watch())

    for at in range(8):
        use = a_use(79 * GIB, claim_bytes=int(0.99 * TOTAL))
        judged = judge(judged.watch, a_snapshot(a_gpu(79 * GIB)), [use], TERMS, float(at))
        assert judged.notices == ()


def test_a_gpu_that_one_worker_fills_beyond_its_claim_is_a_breach_and_not_pressure() -> None:
    judged = watched([a_use(79 * GIB)] * 8)

    assert [one.kind for one in judged.notices] == ["memory-breach"]


def test_a_worker_that_is_no_longer_ready_leaves_no_warning() -> None:
    breached = watched([a_use(LIMIT + GIB)] * 3).watch

    judged = judge(breached, a_snapshot(a_gpu()), [], TERMS, 5.0)

    assert judged.watch.of_workers() == {}
