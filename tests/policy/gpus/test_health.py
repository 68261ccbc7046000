"""Which GPUs are out of service, by whose word, until when; and where their workers go."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from tests.policy.fleets import a_gpu, a_snapshot, applied

from gpuward.config.fleet import Pool
from gpuward.config.host import XidSettings
from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.fleet.spare import spared
from gpuward.policy.fleet.step import FleetState, settle, step
from gpuward.policy.gpus import health as policy
from gpuward.policy.gpus.health import Health, NotPossible, Quarantine, XidSeen
from gpuward.policy.gpus.inventory import Gpu, Snapshot, Vitals
from gpuward.policy.gpus.xids import XIDS, xid_of
from gpuward.policy.placement.place import place
from gpuward.policy.reasons import By
from gpuward.policy.worker.life import BecameReady, Phase, RunEnded, StartRun, Terminate

NOW = 1_800_000_000.0
BOOT = "boot-1"
NO_OVERRIDES = XidSettings()


def after_xids(*codes: int, apart_s: float = 1.0, settings: XidSettings = NO_OVERRIDES) -> tuple[Health, list[str]]:
    """Health after these codes on GPU 0, and the kinds of what was told."""
    health, kinds = Health(), []
    for number, code in enumerate(codes):
        seen = XidSeen(uuid="GPU-0", code=code, at=NOW + number * apart_s)
        health, notes = policy.xid_seen(health, seen, settings, a_gpu(0), BOOT)
        kinds += [note.kind for note in notes]
    return health, kinds


@pytest.mark.parametrize("code", [46, 48, 61, 62, 64, 74, 79, 95, 110, 119, 120, 136, 140, 143, 155, 156, 158])
def test_an_error_of_the_gpu_takes_it_out_of_service(code: int) -> None:
    health, kinds = after_xids(code)

    assert health.quarantines["GPU-0"].xid == code
    assert kinds == ["gpu-quarantined"]
    assert f"XID {code} ({XIDS[code].meaning})" in health.closed(a_snapshot())["GPU-0"]


@pytest.mark.parametrize("code", [8, 13, 31, 43, 45, 63, 68, 92, 94, 144, 154, 9999])
def test_a_programs_fault_or_a_breadcrumb_is_told_and_nothing_follows(code: int) -> None:
    health, kinds = after_xids(code, code, code)

    assert health.quarantines == {}
    assert kinds == ["gpu-xid"] * 3


@pytest.mark.parametrize("code", [32, 109])
def test_what_is_bad_in_series_only_counts_within_the_hour(code: int) -> None:
    soon, _ = after_xids(code, code, apart_s=3599.0)
    late, _ = after_xids(code, code, apart_s=3601.0)

    assert "for the second time within 3599 s" in soon.quarantines["GPU-0"].reason
    assert late.quarantines == {}


def test_what_only_a_reboot_helps_says_so() -> None:
    health, _ = after_xids(79)

    assert "only a reboot of the host helps" in health.quarantines["GPU-0"].reason


def test_the_operators_table_goes_before_ours() -> None:
    settings = XidSettings(record=(79,), quarantine=(13,), app=(48,), host=(9999,))

    assert after_xids(79, settings=settings)[0].quarantines == {}
    assert after_xids(48, settings=settings)[0].quarantines == {}
    assert after_xids(13, settings=settings)[0].quarantines["GPU-0"].xid == 13
    assert xid_of(9999, settings).kind == "host"


def test_more_errors_on_a_quarantined_gpu_are_counted_since_the_first() -> None:
    health, _ = after_xids(48, 95, 79)

    quarantine = health.quarantines["GPU-0"]
    assert (quarantine.count, quarantine.since, quarantine.xid) == (3, NOW, 79)


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        (replace(a_gpu(0), health="lost", reason="fell off"), "lost: fell off"),
        (replace(a_gpu(0), vitals=Vitals(recovery="reset the GPU")), "the driver asks to reset the GPU"),
        (replace(a_gpu(0), vitals=Vitals(rows_pending=True)), "replaced at the next reset"),
        (replace(a_gpu(0), vitals=Vitals(rows_failed=True)), "could not be replaced"),
    ],
)
def test_a_gpu_that_says_itself_that_it_is_not_in_order_is_taken_out_once(gpu: Gpu, reason: str) -> None:
    snapshot = Snapshot(provider="nvml", state="ok", taken_at_s=0.0, gpus=(gpu,))

    health, notes = policy.looked(Health(), snapshot, NOW, BOOT)
    again, more = policy.looked(health, snapshot, NOW + 1, BOOT)

    assert reason in health.quarantines["GPU-0"].reason
    assert [note.kind for note in notes] == ["gpu-quarantined"]
    assert (again, more) == (health, ())


@pytest.mark.parametrize("state", ["stale", "released", "unavailable"])
def test_a_sample_that_is_not_fresh_takes_nothing_out(state: str) -> None:
    lost = replace(a_gpu(0), health="lost")
    snapshot = Snapshot(provider="nvml", state=state, taken_at_s=0.0, gpus=(lost,))  # type: ignore[arg-type]

    assert policy.looked(Health(), snapshot, NOW, BOOT) == (Health(), ())


def test_a_gpu_that_does_not_tell_or_does_not_answer_is_not_taken_out() -> None:
    gpus = (a_gpu(0), replace(a_gpu(1), health="unknown", reason="NVML error 999"))

    assert policy.looked(Health(), Snapshot(provider="nvml", state="ok", taken_at_s=0, gpus=gpus), NOW, BOOT)[1] == ()


def test_a_reboot_after_which_the_gpu_is_in_order_ends_its_quarantine() -> None:
    health, _ = after_xids(79)

    same_boot, _ = policy.looked(health, a_snapshot(1), NOW, BOOT)
    rebooted, notes = policy.looked(health, a_snapshot(1), NOW, "boot-2")
    unwell = replace(a_snapshot(1), gpus=(replace(a_gpu(0), vitals=Vitals(recovery="reset the GPU")),))
    still, _ = policy.looked(health, unwell, NOW, "boot-2")

    assert same_boot == health
    assert (rebooted.quarantines, [note.kind for note in notes]) == ({}, ["gpu-cleared"])
    assert still.quarantines == health.quarantines


def test_clear_is_for_quarantines_and_uncordon_for_cordons() -> None:
    quarantined, _ = after_xids(48)
    cordoned, _ = policy.cordoned(Health(), a_gpu(0), "burns in")

    assert policy.cleared(quarantined, a_gpu(0), "board swapped", NOW)[0].quarantines == {}
    assert policy.uncordoned(cordoned, a_gpu(0), "done")[0].cordons == {}
    assert policy.uncordoned(quarantined, a_gpu(0), "done") == (quarantined, ())
    with pytest.raises(NotPossible, match="not quarantined"):
        policy.cleared(cordoned, a_gpu(0), "done", NOW)


def test_a_cordon_tells_who_gave_it_and_how_it_ends() -> None:
    bob = By(uid=1000, user="bob")

    plain, notes = policy.cordoned(Health(), a_gpu(1), "", bob)
    burning, _ = policy.cordoned(Health(), a_gpu(1), "burns in", bob)
    gone, ended = policy.uncordoned(burning, a_gpu(1), "", bob)

    assert plain.closed(a_snapshot(2))["GPU-1"] == "GPU 1 is cordoned (by bob); to use it again: gpuctl gpu uncordon 1"
    assert burning.closed(a_snapshot(2))["GPU-1"].startswith("GPU 1 is cordoned (burns in, by bob)")
    assert (gone, [note.by for note in (*notes, *ended)]) == (Health(), [bob, bob])


def test_a_gpu_that_is_still_lost_cannot_be_cleared() -> None:
    health, _ = after_xids(79)

    with pytest.raises(NotPossible, match="cannot clear GPU 0 yet: lost: fell off"):
        policy.cleared(health, replace(a_gpu(0), health="lost", reason="fell off"), "hope", NOW)


def test_what_is_out_of_service_survives_as_json() -> None:
    health, _ = after_xids(109, 48)
    health, _ = policy.cordoned(health, a_gpu(1), "mine", By(uid=None, user="SIGHUP"))

    assert msgspec.json.decode(msgspec.json.encode(health), type=Health) == health


def a_pool(**known: object) -> Pool:
    return Pool(name="a", model="m", engine="simulated", **known)  # type: ignore[arg-type]


def closed_at(state: FleetState, *uuids: str) -> FleetState:
    since = {uuid: Quarantine(reason="XID 48", since=NOW, boot_id=BOOT) for uuid in uuids}
    return replace(state, closed=Health(quarantines=since).closed(state.snapshot))


def test_a_closed_gpu_gets_no_new_worker_and_says_so_where_it_is_missed() -> None:
    closed = Health(cordons={"GPU-1": "burns in"}).closed(a_snapshot(2))

    scattered = place([a_pool()], a_snapshot(2), closed=closed)
    short = place([a_pool(workers=2)], a_snapshot(2), closed=closed)
    named = place([a_pool(gpus=(1,))], a_snapshot(2), closed=closed)

    assert scattered.workers[0].gpus == (0,)
    assert (
        short.problems[0].code,
        "1 of them quarantined, cordoned or barred by their mode" in short.problems[0].message,
    ) == (
        "too-few-gpus",
        True,
    )
    assert named.problems[0].code == "gpu-excluded"
    assert "GPU 1 is cordoned (burns in); to use it again: gpuctl gpu uncordon 1" in named.problems[0].message


def test_a_worker_waits_for_its_closed_gpu_and_starts_when_it_is_back() -> None:
    placed, _ = applied(FleetState(snapshot=a_snapshot(1)), ())
    state = closed_at(placed, "GPU-0")
    state, effects = applied(state, [a_pool()])

    assert (state.workers["a/0"].phase, effects) == (Phase.BLOCKED, effects)
    assert not any(isinstance(effect, StartRun) for effect in effects)
    assert "held back: GPU 0 is quarantined since" in state.workers["a/0"].reason
    assert "gpuctl gpu clear 0" in state.workers["a/0"].reason
    back, effects = settle(replace(state, closed={}), 1.0)
    assert back.workers["a/0"].phase is Phase.STARTING


def ready(*, size: int, **known: object) -> FleetState:
    """A pool whose worker 0 is ready on GPU 0."""
    state, _ = applied(FleetState(snapshot=a_snapshot(size)), [a_pool(**known)])
    state, _ = step(state, [("a/0", BecameReady(1))], 1.0)
    assert state.workers["a/0"].phase is Phase.READY
    return state


def test_a_worker_that_may_moves_from_a_quarantined_gpu_to_a_free_one() -> None:
    state = closed_at(ready(size=3, spare=True), "GPU-0", "GPU-1")

    moved, effects = spared(state, {"GPU-0": state.closed["GPU-0"]}, (), 2.0)

    worker = moved.workers["a/0"]
    assert (worker.device_uuids, worker.run_uuids) == (("GPU-2",), ("GPU-0",))
    assert Terminate("a/0") in effects
    assert "moves to GPU 2: GPU 0 is quarantined" in worker.reason
    assert spared(moved, {"GPU-0": moved.closed["GPU-0"]}, (), 3.0) == (moved, ())


@pytest.mark.parametrize(
    ("size", "known"),
    [
        (1, {"spare": True}),
        (2, {"spare": False}),
        (2, {"spare": True, "gpus": (0,)}),
        (2, {"spare": True, "share": True}),
    ],
    ids=["none is free", "not asked for", "named", "shared"],
)
def test_a_worker_that_cannot_or_may_not_move_goes_on(size: int, known: dict[str, object]) -> None:
    state = closed_at(ready(size=size, **known), "GPU-0")

    assert spared(state, {"GPU-0": state.closed["GPU-0"]}, (), 2.0) == (state, ())


def test_an_excluded_or_taken_gpu_is_no_spare() -> None:
    state = closed_at(ready(size=3, spare=True, workers=2), "GPU-0")

    assert spared(state, {"GPU-0": state.closed["GPU-0"]}, (2,), 2.0) == (state, ())
    assert spared(state, {"GPU-0": state.closed["GPU-0"]}, (), 2.0)[0].workers["a/0"].device_uuids == ("GPU-2",)


def missed(health: Health, *errors: tuple[int, float]) -> tuple[Health, list[str]]:
    """Health after the kernel's log was read: codes on GPU 0, at these wall times."""
    seen = [XidSeen(uuid="GPU-0", code=code, at=at) for code, at in errors]
    health, notes = policy.xids_missed(health, seen, NO_OVERRIDES, a_snapshot(1), BOOT)
    return health, [note.kind for note in notes]


def test_an_error_that_nobody_heard_takes_the_gpu_out_when_the_log_is_read() -> None:
    health, kinds = missed(Health(), (31, NOW - 9), (79, NOW - 8), (45, NOW - 7), (79, NOW - 6))

    assert (health.quarantines["GPU-0"].xid, health.quarantines["GPU-0"].since) == (79, NOW - 8)
    assert kinds == ["gpu-quarantined"]
    assert missed(health, (79, NOW - 8)) == (health, [])


def test_what_was_cleared_is_not_found_again_in_the_log_but_what_came_after_is() -> None:
    health, _ = after_xids(48)
    health, _ = policy.cleared(health, a_gpu(0), "board swapped", NOW + 100)

    assert missed(health, (48, NOW)) == (health, [])
    assert missed(health, (48, NOW), (95, NOW + 101))[0].quarantines["GPU-0"].xid == 95


def test_errors_since_a_reboot_count_though_it_ended_an_older_quarantine() -> None:
    health, _ = policy.looked(after_xids(79)[0], a_snapshot(1), NOW + 500, "boot-2")

    assert missed(health, (48, NOW + 400))[0].quarantines["GPU-0"].xid == 48


def test_memory_on_a_gpu_that_is_lost_is_not_waited_for() -> None:
    state = ready(size=2, spare=True)
    lost = replace(a_snapshot(2, at_s=3.0), gpus=(replace(a_gpu(0), health="lost", free_bytes=None), a_gpu(1)))
    state, _ = spared(replace(closed_at(state, "GPU-0"), snapshot=lost), {"GPU-0": "GPU 0 is lost"}, (), 2.0)
    exit_ = LastExit(run=1, cause="commanded", code=None, signal=15, at=NOW)

    moved, effects = step(state, [("a/0", RunEnded(run=1, exit=exit_, permanent=False, reason="moves"))], 2.5)

    assert moved.workers["a/0"].run_uuids == ("GPU-1",), moved.workers["a/0"].reason
    assert StartRun("a/0", 2) in effects
