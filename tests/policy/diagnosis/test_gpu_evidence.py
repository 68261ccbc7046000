"""What the host knew of a run's GPUs in its last seconds, and what that makes of the cause."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.policy.diagnosis.test_verdict import OOM, SERVING, STARTING
from tests.policy.fleets import GIB

from gpuward.config.host import XidSettings
from gpuward.policy.diagnosis.causes import Cause, LastExit
from gpuward.policy.diagnosis.gpu_evidence import GpuHeld, LastMoments, fullest, with_late_xid, xids_heard
from gpuward.policy.diagnosis.verdict import RunEnd, Verdict, classify
from gpuward.policy.gpus.health import XidSeen

ENDED_AT = 1000.0
ERROR = "(EngineCore pid=7) RuntimeError: something broke"
SILENT = "Engine core proc EngineCore_0 died unexpectedly, shutting down client."


def heard(*seen: tuple[int, float], settings: XidSettings | None = None, until: float = 1e9) -> LastMoments:
    """Codes and how long before the end each came, on the run's only GPU."""
    xids = (XidSeen(uuid="GPU-c", code=code, at=ENDED_AT - before_s) for code, before_s in seen)
    return LastMoments(xids=xids_heard(xids, {"GPU-c": "GPU 3"}, settings or XidSettings(), ENDED_AT, until))


def verdict_on(moments: LastMoments, *lines: str, end: RunEnd = SERVING) -> Verdict:
    return classify(end, lines, moments=moments)


def a_gpu(index: int = 0, free_gib: float = 0.3, used_gib: float | None = 71.2) -> GpuHeld:
    return GpuHeld(
        gpu=f"GPU {index}",
        claim_bytes=72 * GIB,
        total_bytes=80 * GIB,
        used_bytes=int(used_gib * GIB) if used_gib is not None else None,
        others_bytes=int(6.1 * GIB),
        free_bytes=int(free_gib * GIB),
    )


def memory(*gpus: GpuHeld, before_s: float = 0.8) -> LastMoments:
    return LastMoments(memory=fullest(gpus or (a_gpu(),), before_s))


def test_an_xid_of_the_hardware_is_the_cause_where_the_output_names_none() -> None:
    verdict = verdict_on(heard((79, 0.4)), ERROR)

    assert (verdict.cause, verdict.permanent) == (Cause.GPU_HARDWARE, True)
    assert verdict.evidence == ("XID 79 on GPU 3 (the GPU has fallen off the bus) 0.4 s before the end", ERROR)
    assert "XID 79 on GPU 3 (the GPU has fallen off the bus), a hardware fault (exit code 0)" in verdict.reason


def test_an_xid_of_the_program_is_a_cuda_fault_that_a_new_start_may_mend() -> None:
    verdict = verdict_on(heard((31, 2.0), (31, 1.0)), ERROR)

    assert (verdict.cause, verdict.permanent) == (Cause.CUDA_FAULT, False)
    assert verdict.evidence[0] == "XID 31 on GPU 3 (MMU page fault), 2 times, first 2.0 s before the end"


def test_an_xid_that_comes_a_moment_after_the_end_counts_too() -> None:
    assert verdict_on(heard((48, -0.2))).evidence[0].endswith("(double-bit ECC error) 0.2 s after the end")


def test_a_fault_of_the_gpu_beats_one_of_the_program_whichever_came_first() -> None:
    verdict = verdict_on(heard((13, 5.0), (79, 1.0)))

    assert verdict.cause is Cause.GPU_HARDWARE
    assert [line[:6] for line in verdict.evidence] == ["XID 79", "XID 13"]


@pytest.mark.parametrize("seen", [(79, 31.0), (45, 0.1), (12345, 0.1)])
def test_an_old_xid_and_one_that_is_only_recorded_say_nothing(seen: tuple[int, float]) -> None:
    verdict = verdict_on(heard(seen), ERROR)

    assert (verdict.cause, verdict.evidence) == (Cause.CRASH, (ERROR,))


def test_the_operators_own_class_of_a_code_counts() -> None:
    settings = XidSettings(record=(79,), host=(31,))

    assert verdict_on(heard((79, 1.0), settings=settings)).cause is Cause.CRASH
    assert verdict_on(heard((31, 1.0), settings=settings)).cause is Cause.GPU_HARDWARE


def test_a_signature_in_the_output_stays_the_cause_and_gets_the_xid_as_evidence() -> None:
    verdict = verdict_on(heard((79, 1.0)), OOM)

    assert verdict.cause is Cause.GPU_OOM_RUNTIME
    assert verdict.evidence == (OOM, "XID 79 on GPU 3 (the GPU has fallen off the bus) 1.0 s before the end")


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        (replace(SERVING, commanded=True), Cause.COMMANDED),
        (replace(SERVING, hung="no progress for 30 s"), Cause.HANG),
        (replace(STARTING, start_timed_out=True), Cause.START_TIMEOUT),
        (replace(SERVING, signal=9, code=None, oom_kills=1, oom_proven=True), Cause.HOST_OOM),
    ],
)
def test_our_own_kill_and_a_proven_one_of_the_kernel_stay_the_cause(end: RunEnd, cause: Cause) -> None:
    assert verdict_on(heard((79, 1.0), (13, 1.0)), end=end).cause is cause


def test_the_hosts_count_of_kills_proves_less_than_a_fault_of_the_gpu_and_more_than_one_of_the_program() -> None:
    end = replace(SERVING, signal=9, code=None, oom_kills=1)

    assert verdict_on(heard((79, 1.0)), end=end).cause is Cause.GPU_HARDWARE
    assert verdict_on(heard((31, 1.0)), end=end).cause is Cause.HOST_OOM


def test_what_was_heard_after_the_daemon_began_to_end_a_run_is_clean_up() -> None:
    assert heard((13, 0.5), (79, 0.2), until=ENDED_AT - 1.0) == LastMoments()


@pytest.mark.parametrize(
    "end",
    [
        replace(SERVING, signal=9, code=None),
        replace(SERVING, code=137),
        replace(SERVING, code=None, keeper_lost=True),
        replace(SERVING, code=1, swept=True),
    ],
)
def test_the_traces_of_a_kill_are_evidence_and_no_cause(end: RunEnd) -> None:
    verdict = verdict_on(heard((43, 0.1)), SILENT, end=end)

    assert verdict.cause is Cause.CRASH
    assert verdict.evidence == (SILENT, "XID 43 on GPU 3 (channel reset after a program's fault) 0.1 s before the end")


def test_a_fault_well_before_the_end_is_the_cause_also_where_processes_had_to_be_killed() -> None:
    assert verdict_on(heard((43, 5.0)), end=replace(SERVING, swept=True)).cause is Cause.CUDA_FAULT
    assert verdict_on(heard((13, 0.1)), end=replace(SERVING, swept=True)).cause is Cause.CUDA_FAULT


def test_evidence_stays_at_five_lines_and_keeps_the_first_of_each_kind() -> None:
    both = replace(memory(), xids=heard((79, 1.0), (13, 2.0), (31, 3.0)).xids)

    evidence = verdict_on(both, OOM, *(f"line {number}" for number in range(9))).evidence

    assert len(evidence) <= 5
    assert (evidence[0], evidence[1][:6], evidence[-1][:6]) == (OOM, "XID 79", "GPU 0:")


def test_want_of_gpu_memory_is_told_with_who_held_it() -> None:
    told = "GPU 0: it held 71.2 GiB of its 72.0 GiB claim, others held 6.1 GiB, 0.3 GiB were free, 0.8 s before the end"

    verdict = verdict_on(memory(), OOM)

    assert verdict.evidence == (OOM, told)
    assert verdict.reason.endswith(f"; {told}")


@pytest.mark.parametrize(
    ("free_gib", "used_gib", "told"),
    [(3.0, 71.2, True), (3.1, 71.2, False), (77.6, 1.5, False), (1.0, 0.0, False)],
)
def test_a_sample_that_contradicts_the_figures_of_an_oom_is_left_out(
    free_gib: float, used_gib: float, *, told: bool
) -> None:
    """2.00 GiB were asked for, 1.06 GiB were free: 3.1 GiB are 2.04 GiB off."""
    verdict = verdict_on(memory(a_gpu(free_gib=free_gib, used_gib=used_gib)), OOM)

    assert (len(verdict.evidence), "it held" in verdict.reason) == (1 + told, told)
    assert "2.00 GiB asked, 1.06 GiB of 79.11 GiB free" in verdict.reason


def test_of_several_gpus_the_fullest_that_tells_is_told() -> None:
    verdict = verdict_on(memory(a_gpu(0, 5.0), a_gpu(1, 0.5), a_gpu(2, 0.1, None)), OOM)

    assert verdict.evidence[-1].startswith("GPU 1: it held 71.2 GiB")
    assert verdict.evidence[-1].endswith("(the fullest of its 3 GPUs)")


@pytest.mark.parametrize("before_s", [10.5, -0.1])
def test_an_old_sample_and_one_of_after_the_end_say_nothing(before_s: float) -> None:
    assert verdict_on(memory(before_s=before_s), OOM).evidence == (OOM,)


def test_a_sample_that_does_not_tell_everything_says_nothing() -> None:
    assert memory(a_gpu(used_gib=None)) == LastMoments()
    assert memory(replace(a_gpu(), others_bytes=None)) == LastMoments()


@pytest.mark.parametrize(
    ("gpu", "signal", "told"),
    [(a_gpu(free_gib=0.3), 9, True), (a_gpu(free_gib=9.0), 9, False), (a_gpu(free_gib=0.3), 11, False)],
)
def test_memory_is_told_of_an_unexplained_sigkill_on_a_full_gpu_only(gpu: GpuHeld, signal: int, *, told: bool) -> None:
    verdict = verdict_on(memory(gpu), end=replace(SERVING, signal=signal, code=None))

    assert verdict.cause is Cause.CRASH
    assert any("it held 71.2 GiB" in line for line in verdict.evidence) is told
    assert ("it held 71.2 GiB" in verdict.reason) is told


def an_exit(cause: str = "crash", signal: int | None = None, evidence: tuple[str, ...] = (ERROR,)) -> LastExit:
    return LastExit(run=1, cause=cause, code=None if signal else 1, signal=signal, at=ENDED_AT, evidence=evidence)


def late(exit_: LastExit, code: int = 79, after_s: float = 0.3) -> LastExit:
    return with_late_xid(exit_, XidSeen(uuid="GPU-c", code=code, at=ENDED_AT + after_s), "GPU 3", XidSettings())


def test_an_xid_just_behind_an_end_is_added_to_its_evidence_once_and_the_cause_stays() -> None:
    amended = late(an_exit())

    evidence = (ERROR, "XID 79 on GPU 3 (the GPU has fallen off the bus) 0.3 s after the end")
    assert (amended.cause, amended.evidence) == ("crash", evidence)
    assert late(amended, after_s=0.5) is amended
    assert len(late(an_exit(evidence=(ERROR,) * 5)).evidence) == 5


@pytest.mark.parametrize(
    ("exit_", "code", "after_s"),
    [
        (an_exit("commanded"), 79, 0.3),
        (an_exit("hang"), 79, 0.3),
        (an_exit("start-timeout"), 79, 0.3),
        (an_exit(signal=9), 43, 0.3),
        (an_exit(), 45, 0.3),
        (an_exit(), 79, 2.5),
        (an_exit(), 79, -1.0),
    ],
)
def test_clean_up_and_what_comes_much_later_are_no_evidence(exit_: LastExit, code: int, after_s: float) -> None:
    assert late(exit_, code, after_s) is exit_
