"""Why runs end: the recorded logs, the order of causes, and what the text alone does not tell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpuward.config.host import SignatureRule
from gpuward.policy.diagnosis.causes import Cause, own_signatures
from gpuward.policy.diagnosis.log_findings import STEMS
from gpuward.policy.diagnosis.machine_signatures import DRIVER_SIGNATURES, MACHINE_SIGNATURES
from gpuward.policy.diagnosis.model_signatures import MODEL_SIGNATURES
from gpuward.policy.diagnosis.signatures import SIGNATURES
from gpuward.policy.diagnosis.verdict import RunEnd, Verdict, classify, spawn_failed
from gpuward.policy.reasons import Ending, EndingKind

LOGS = Path(__file__).resolve().parents[3].parent / "shared" / "fixtures" / "vllm-logs"
STARTING = RunEnd(code=1, signal=None)
SERVING = RunEnd(code=0, signal=None, phase="ready")

needs_logs = pytest.mark.skipif(
    not LOGS.is_dir(), reason="the recorded logs (../shared/fixtures/vllm-logs) are not here"
)

OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 79.11 GiB "
    "of which 1.06 GiB is free. Including non-PyTorch memory, this process has 70.00 GiB memory in use."
)
RECORDED = {
    "cuda_fault_device_assert": (SERVING, Cause.CUDA_FAULT, False),
    "cuda_fault_xid_dmesg": (SERVING, Cause.CRASH, False),  # the driver tells XIDs; in output they are anybody's words
    "gpu_busy_startup_free_memory": (STARTING, Cause.GPU_BUSY, False),
    "gpu_oom_runtime_enginedead": (SERVING, Cause.GPU_OOM_RUNTIME, False),
    "gpu_oom_startup_linear_create_weights": (STARTING, Cause.GPU_OOM_STARTUP, True),
    "hang_rpc_timeout": (SERVING, Cause.HANG, False),
    "kv_max_seq_len_old_text": (STARTING, Cause.KV_CACHE_TOO_SMALL, True),
    "memory_profiling_assertion": (STARTING, Cause.PROFILING_RACE, False),
    "normal_startup_gpu_timings": (STARTING, Cause.CRASH, False),
    "port_conflict_dist_init": (STARTING, Cause.PORT_CONFLICT, False),
    "real032_bad_arg": (replace(STARTING, code=2), Cause.CONFIG_ERROR, True),
    "real032_bad_value": (replace(STARTING, code=2), Cause.CONFIG_ERROR, True),
    "real032_engine_dies_at_first_request": (SERVING, Cause.CRASH, False),
    "real032_engine_sigkill": (SERVING, Cause.CRASH, False),
    "real032_kv_too_small": (STARTING, Cause.KV_CACHE_TOO_SMALL, True),
    "real032_max_len_gt_model": (STARTING, Cause.CONFIG_ERROR, True),
    "real032_model_missing_hub": (STARTING, Cause.CONFIG_ERROR, True),
    "real032_model_missing_path": (STARTING, Cause.CONFIG_ERROR, True),
    "real032_no_kv_memory": (STARTING, Cause.KV_CACHE_TOO_SMALL, True),
    "real032_port_in_use": (STARTING, Cause.PORT_CONFLICT, True),
    "real032_ready": (STARTING, Cause.CRASH, False),
    "real032_sigterm_active_request": (SERVING, Cause.CRASH, False),
    "real032_sigterm_default": (SERVING, Cause.CRASH, False),
    "real032_sigterm_in_startup": (replace(STARTING, code=None, signal=2), Cause.CRASH, False),
    "real032_util_above_free": (STARTING, Cause.GPU_BUSY, False),
    "real032_util_gt_1": (STARTING, Cause.CONFIG_ERROR, True),
    "real032_worker_sigkill": (SERVING, Cause.CRASH, False),
}
"""What the README beside the logs says of each, unasked: how it ended, the cause, whether a restart is pointless."""


def recorded(name: str) -> list[str]:
    """The lines of a recorded log without the two comment lines."""
    return (LOGS / f"{name}.txt").read_text(encoding="utf-8").splitlines()[2:]


def verdict_on(*lines: str, end: RunEnd = STARTING) -> Verdict:
    return classify(end, lines)


@pytest.mark.fixtures
@needs_logs
def test_every_recorded_log_is_judged_here() -> None:
    assert {path.stem for path in LOGS.glob("*.txt")} == set(RECORDED)


@pytest.mark.fixtures
@needs_logs
@pytest.mark.parametrize("name", sorted(RECORDED))
def test_a_recorded_log_has_its_cause(name: str) -> None:
    end, cause, permanent = RECORDED[name]

    verdict = classify(end, recorded(name))

    assert (verdict.cause, verdict.permanent) == (cause, permanent)
    assert 1 <= len(verdict.evidence) <= 5
    assert all(len(line) <= 300 for line in verdict.evidence)


@pytest.mark.fixtures
@needs_logs
@pytest.mark.parametrize("name", sorted(RECORDED))
def test_a_commanded_end_is_commanded_whatever_was_printed(name: str) -> None:
    verdict = classify(replace(RECORDED[name][0], commanded=True), recorded(name))

    assert verdict.cause is Cause.COMMANDED


@pytest.mark.fixtures
@needs_logs
@pytest.mark.parametrize("name", ["real032_engine_sigkill", "real032_worker_sigkill"])
def test_a_silent_death_is_host_oom_only_with_proof(name: str) -> None:
    assert classify(replace(SERVING, oom_kills=1), recorded(name)).cause is Cause.HOST_OOM
    assert classify(SERVING, recorded(name)).cause is Cause.CRASH


@pytest.mark.fixtures
@needs_logs
def test_an_engine_that_dies_of_an_exception_is_no_host_oom_even_if_the_kernel_killed_elsewhere() -> None:
    verdict = classify(replace(SERVING, oom_kills=1), recorded("real032_engine_dies_at_first_request"))

    assert verdict.cause is Cause.CRASH
    assert "RuntimeError: Unsupported CPU attention configuration: head_dim=16" in verdict.evidence[0]
    assert verdict.reason.endswith(
        "RuntimeError: Unsupported CPU attention configuration: head_dim=16 isa=2 kv_cache_idx=0"
    )


@pytest.mark.fixtures
@needs_logs
@pytest.mark.parametrize(
    ("name", "part", "text"),
    [
        ("real032_kv_too_small", "hint", "max-model-len to 384"),
        ("kv_max_seq_len_old_text", "hint", "max-model-len to 58384"),
        ("real032_max_len_gt_model", "hint", "max-model-len to 2048"),
        ("real032_model_missing_path", "reason", "no model at '/models/nope'"),
        ("gpu_busy_startup_free_memory", "reason", "7.34 of 139.72 GiB were free at the start"),
        ("real032_util_above_free", "reason", "0.99 needs 11.84 GiB"),
        ("gpu_oom_startup_linear_create_weights", "reason", "896.00 MiB asked, 739.81 MiB of 93.09 GiB free"),
        ("port_conflict_dist_init", "reason", "internal port 32847"),
    ],
)
def test_the_numbers_of_the_log_are_in_the_verdict(name: str, part: str, text: str) -> None:
    assert text in getattr(classify(RECORDED[name][0], recorded(name)), part)


@pytest.mark.fixtures
@needs_logs
def test_a_message_over_several_lines_is_evidence_with_the_next() -> None:
    race = classify(STARTING, recorded("memory_profiling_assertion")).evidence
    config = classify(STARTING, recorded("real032_util_gt_1")).evidence

    assert len(race) == 2
    assert "90.17 GiB" in race[1]
    assert config[1] == "gpu_memory_utilization"
    assert "input_value=1.5" in config[2]


def test_the_same_text_is_startup_or_runtime_by_the_phase() -> None:
    assert verdict_on(OOM).cause is Cause.GPU_OOM_STARTUP
    assert verdict_on(OOM, end=SERVING).cause is Cause.GPU_OOM_RUNTIME


def test_the_engine_itself_says_that_it_ran_before_the_probe_did() -> None:
    verdict = verdict_on(
        OOM, "(EngineCore pid=1) ERROR 05-05 12:36:59 [core.py:1] EngineCore encountered a fatal error."
    )

    assert verdict.cause is Cause.GPU_OOM_RUNTIME


def test_a_startup_oom_beside_another_process_is_not_permanent() -> None:
    verdict = verdict_on(OOM.replace(" Including", " Process 4242 has 60.00 GiB memory in use. Including"))

    assert (verdict.cause, verdict.permanent) == (Cause.GPU_OOM_STARTUP, False)
    assert "process 4242 holds 60.00 GiB" in verdict.reason


@pytest.mark.parametrize(
    "line",
    [
        "RuntimeError: CUDA error: out of memory",
        "NCCL WARN Cuda failure 2 'out of memory'",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy requests.",
    ],
)
def test_other_wordings_of_a_full_gpu(line: str) -> None:
    assert verdict_on(line, "RuntimeError: NCCL error: unhandled cuda error").cause is Cause.GPU_OOM_STARTUP


@pytest.mark.parametrize(
    ("line", "cause", "permanent"),
    [
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", Cause.GPU_HARDWARE, True),
        ("[ 12.3] NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.", Cause.CRASH, False),
        ("NVRM: Xid (PCI:0000:3b:00): 31, pid=1", Cause.CRASH, False),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", Cause.CUDA_FAULT, False),
        ("torch.distributed.DistBackendError: NCCL error: unhandled cuda error", Cause.CUDA_FAULT, False),
        ("ValueError: No available memory for the cache blocks. Try increasing", Cause.KV_CACHE_TOO_SMALL, True),
        ("zmq.error.ZMQError: Address already in use (addr='tcp://*:5600')", Cause.PORT_CONFLICT, True),
        ("ValueError: invalid literal for int() with base 10: 'GPU-1a'", Cause.CONFIG_ERROR, True),
        (
            "ValueError: World size (8) is larger than the number of available GPUs (4) in this node",
            Cause.CONFIG_ERROR,
            True,
        ),
        ("importlib.metadata.PackageNotFoundError: No package metadata was found for vllm", Cause.CONFIG_ERROR, True),
        ("/venv/bin/python: No module named vllm", Cause.CONFIG_ERROR, True),
        ("TimeoutError: Timed out waiting for engine core processes to start.", Cause.START_TIMEOUT, False),
    ],
)
def test_a_line_has_its_cause(line: str, cause: Cause, permanent: bool) -> None:
    verdict = verdict_on("INFO 01-01 00:00:00 [a.py:1] hello", line)

    assert (verdict.cause, verdict.permanent) == (cause, permanent)
    assert verdict.evidence[-1] == line


def test_hardware_wins_over_everything_before_it() -> None:
    verdict = verdict_on(OOM, "CUDA error: an illegal memory access", "CUDA error: uncorrectable ECC error encountered")

    assert verdict.cause is Cause.GPU_HARDWARE


def test_the_first_line_of_a_cause_is_its_evidence_and_wrappers_are_none() -> None:
    verdict = verdict_on(
        "noise",
        OOM,
        OOM.replace("2.00", "3.00"),
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    )

    assert verdict.evidence == (OOM,)


def test_wrappers_alone_are_a_crash() -> None:
    verdict = verdict_on(
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    )

    assert verdict.cause is Cause.CRASH
    assert "first error" not in verdict.reason


@pytest.mark.parametrize(
    "line",
    [
        "pydantic_core.ValidationError: 1 validation error for CacheConfig",
        "OSError: [Errno 98] Address already in use",
        "ValueError: No available memory for the cache blocks.",
    ],
)
def test_a_start_failure_in_the_log_of_a_worker_that_was_ready_is_an_old_story(line: str) -> None:
    assert verdict_on(line, end=SERVING).cause is Cause.CRASH


def test_a_bad_request_is_no_config_error() -> None:
    line = "pydantic_core._pydantic_core.ValidationError: 1 validation error for ChatCompletionRequest"

    assert verdict_on(line).cause is Cause.CRASH


@pytest.mark.parametrize(
    "line",
    [
        "INFO 06-19 23:05:01 [logger.py:40] Received request cmpl-1: prompt: 'CUDA out of memory. Tried to allocate'",
        "(APIServer pid=7) INFO 06-19 23:05:01 [logger.py:40] prompt: 'uncorrectable ECC error'",
        'INFO:     127.0.0.1:5 - "GET /fallen off the bus HTTP/1.1" 404',
    ],
)
def test_what_a_user_wrote_is_no_cause(line: str) -> None:
    assert verdict_on(line, end=SERVING).cause is Cause.CRASH


def test_one_line_of_waiting_for_shared_memory_is_normal_two_are_a_hang() -> None:
    line = "INFO 03-08 17:27:28 [shm_broadcast.py:548] No available shared memory broadcast block found in 60 seconds."

    assert verdict_on(line, end=SERVING).cause is Cause.CRASH
    assert verdict_on(line, "other", line, end=SERVING).cause is Cause.HANG
    assert verdict_on(line, line, line).cause is Cause.CRASH


@pytest.mark.parametrize("code", [0, 1, 127])
def test_an_unasked_exit_is_a_crash_whatever_the_code(code: int) -> None:
    verdict = verdict_on("serving", end=replace(SERVING, code=code))

    assert verdict.cause is Cause.CRASH
    assert f"exit code {code}" in verdict.reason
    assert verdict.evidence == ("serving",)


def test_a_killed_worker_is_host_oom_if_the_kernel_killed_and_crash_if_not() -> None:
    killed = RunEnd(code=None, signal=9, phase="ready")

    assert classify(replace(killed, oom_kills=2), ()).cause is Cause.HOST_OOM
    assert classify(replace(SERVING, code=137, oom_kills=2), ()).cause is Cause.HOST_OOM
    assert classify(killed, ()).cause is Cause.CRASH
    assert "signal 9" in classify(killed, ()).reason


def test_the_count_of_the_host_is_a_suspicion_and_that_of_the_runs_own_cgroup_a_proof() -> None:
    killed = RunEnd(code=None, signal=9, phase="ready", oom_kills=1)

    assert "suspected" in classify(killed, ()).reason
    proven = classify(replace(killed, oom_proven=True), ())
    assert proven.cause is Cause.HOST_OOM
    assert proven.reason.startswith("the kernel killed it for want of host memory: 1 oom_kill in its own cgroup")


def test_a_proven_kill_explains_an_end_that_looks_like_another() -> None:
    end = replace(STARTING, oom_kills=1, oom_proven=True)

    assert verdict_on("ValueError: a child is gone", end=end).cause is Cause.HOST_OOM
    assert verdict_on("ValueError: mine", end=replace(end, oom_kills=0)).cause is Cause.CRASH


def test_a_kill_somewhere_else_on_the_host_explains_nothing() -> None:
    assert verdict_on("ValueError: mine", end=replace(STARTING, oom_kills=3)).cause is Cause.CRASH


def test_gpu_causes_win_over_host_oom_and_host_oom_over_the_rest() -> None:
    end = RunEnd(code=None, signal=9, oom_kills=1)

    assert verdict_on(OOM, end=end).cause is Cause.GPU_OOM_STARTUP
    assert verdict_on("OSError: [Errno 98] Address already in use", end=end).cause is Cause.HOST_OOM


def test_exit_code_2_is_a_config_error_only_where_the_program_said_so() -> None:
    usage = replace(STARTING, code=2)

    refused = verdict_on("usage: serve", "serve: error: the port must be a number", end=usage)

    assert (refused.cause, refused.permanent) == (Cause.CONFIG_ERROR, True)
    assert refused.evidence == ("serve: error: the port must be a number",)
    assert verdict_on("bye", end=usage).cause is Cause.CRASH
    assert verdict_on("serve: error: x", end=replace(SERVING, code=2)).cause is Cause.CRASH


def test_a_start_that_took_too_long_is_a_start_timeout_unless_the_log_knows_better() -> None:
    late = RunEnd(code=None, signal=9, start_timed_out=True)

    assert verdict_on("loading", end=late).cause is Cause.START_TIMEOUT
    assert verdict_on(OOM, end=late).cause is Cause.GPU_OOM_STARTUP


def test_a_lost_keeper_is_a_crash_that_says_so() -> None:
    verdict = classify(RunEnd(code=None, signal=None, phase="ready", keeper_lost=True), ("serving",))

    assert verdict.cause is Cause.CRASH
    assert "keeper was killed" in verdict.reason


def test_a_keeper_that_could_not_write_the_end_was_not_killed() -> None:
    verdict = classify(RunEnd(code=None, signal=None, phase="ready", unwritten=True), ("serving",))

    assert verdict.cause is Cause.CRASH
    assert verdict.reason.startswith("it ended while serving; its keeper could not write how")


@pytest.mark.parametrize(
    ("kind", "message", "cause", "permanent"),
    [
        ("exec", "cannot execute /nope: No such file or directory", Cause.CONFIG_ERROR, True),
        ("exec", "cannot execute /etc/passwd: Permission denied", Cause.CONFIG_ERROR, True),
        ("cwd", "cannot enter /nowhere for /bin/serve: No such file or directory", Cause.CONFIG_ERROR, True),
        (
            "launch",
            "cannot start pool 'p': no 'vllm' in PATH nor beside /python; set 'executable'",
            Cause.CONFIG_ERROR,
            True,
        ),
        ("resource", "cannot execute /bin/serve: Cannot allocate memory", Cause.CRASH, False),
        ("resource", "[Errno 24] Too many open files", Cause.CRASH, False),
        ("pin", "cannot pin a/0: GPU GPU-1 is not in the inventory", Cause.CRASH, False),
        ("prepare", "cannot prepare /bin/serve: Operation not permitted", Cause.CRASH, False),
        ("lease", "the lease /run/leases/GPU-1 is held by another run or another daemon", Cause.GPU_BUSY, False),
    ],
)
def test_a_worker_that_was_never_started_has_a_cause_too(
    kind: str, message: str, cause: Cause, permanent: bool
) -> None:
    verdict = spawn_failed(message, kind)

    assert (verdict.cause, verdict.permanent, verdict.reason) == (cause, permanent, message)


def test_an_exception_of_an_older_story_is_not_the_first_error() -> None:
    old, new = "ERROR 01-01 00:00:00 [a.py:1] ValueError: a client hung up", "RuntimeError: the engine broke"

    verdict = verdict_on(old, *["GET /health 200"] * 500, new, "(E pid=1) EngineCore encountered a fatal error.")

    assert verdict.evidence == (new,)
    assert verdict.reason.endswith("first error: RuntimeError: the engine broke")


def test_evidence_of_an_endless_line_is_cut_around_the_cause() -> None:
    verdict = verdict_on("x" * 5000 + OOM + "y" * 5000)

    assert len(verdict.evidence[0]) <= 300
    assert "CUDA out of memory" in verdict.evidence[0]


def test_evidence_of_a_long_message_keeps_the_number_at_its_end() -> None:
    refusal = (
        "(EngineCore pid=31842) ERROR 11-22 20:24:53 [core.py:1510] ValueError: To serve at least one request with the "
        "model's max seq len (2048), (0.0 GiB KV cache is needed, which is larger than the available KV cache memory "
        "(0.0 GiB). Based on the available memory, the estimated maximum model length is 384. Try increasing "
        "`gpu_memory_utilization` (which also controls CPU memory on the CPU backend) or decreasing `max_model_len`."
    )

    (line,) = verdict_on(refusal).evidence

    assert len(line) <= 300
    assert "max seq len (2048)" in line
    assert "estimated maximum model length is 384" in line


def test_evidence_that_is_longer_than_its_room_keeps_the_begin_of_what_was_found() -> None:
    missing = f"{'x' * 140} the model /{'y' * 400} is not a local folder and is not a valid model identifier"

    (line,) = verdict_on(missing).evidence

    assert len(line) <= 300
    assert line.startswith("...")
    assert line.count("y") > 250


def test_output_is_read_once_and_never_kept() -> None:
    def endless() -> Iterator[str]:
        for number in range(50_000):
            yield f"ERROR something is in error {number}: ValueError: {'z' * 200}"

    verdict = classify(SERVING, endless())

    assert verdict.cause is Cause.CRASH
    assert len(verdict.evidence) <= 5


def test_every_literal_passes_the_stems_that_are_looked_for_first() -> None:
    of_exceptions = {*DRIVER_SIGNATURES, *MACHINE_SIGNATURES, *MODEL_SIGNATURES}  # there the name holds the stem
    missed = [
        signature.literal
        for signature in SIGNATURES
        if signature not in of_exceptions and not any(stem in signature.literal for stem in STEMS)
    ]

    assert missed == []


def test_every_sentence_can_be_filled_from_its_pattern() -> None:
    for signature in SIGNATURES:
        words = dict.fromkeys(signature.pattern.groupindex, "7")

        assert re.fullmatch(r"[^{}]+", signature.says.format(**words))
        assert "{" not in signature.hint.format(**words)


def test_a_signature_of_the_host_wins_and_fills_its_sentence() -> None:
    rule = SignatureRule(
        cause="gpu-oom-runtime",
        contains="arena exhausted",
        pattern=r"exhausted after (?P<mib>\d+) MiB",
        says="the arena was exhausted after {mib} MiB",
        hint="raise arena-mib above {mib}",
        phase="ready",
    )
    lines = ["arena exhausted after 512 MiB", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB."]
    own = own_signatures([rule])

    ready = classify(RunEnd(code=1, signal=None, phase="ready"), lines, own)
    starting = classify(RunEnd(code=1, signal=None), lines, own)

    assert (ready.cause, ready.evidence[0]) == (Cause.GPU_OOM_RUNTIME, lines[0])
    assert (ready.reason, ready.hint) == (
        "the arena was exhausted after 512 MiB (exit code 1)",
        "raise arena-mib above 512",
    )
    assert starting.cause is Cause.GPU_OOM_STARTUP


def test_a_text_of_the_host_may_be_any_text() -> None:
    own = own_signatures([SignatureRule(cause="hang", contains="zzz (", says="it slept")])

    assert classify(RunEnd(code=1, signal=None), ["x zzz ( y"], own).cause is Cause.HANG


@pytest.mark.parametrize(
    ("kind", "why", "cause"),
    [
        ("breach", 'm/0 holds 77.3 GiB on GPU 2: more than its claim (on-breach is "restart")', Cause.MEMORY_BREACH),
        ("spare", "moves to GPU 2: GPU 0 is quarantined", Cause.MOVED),
        ("halt", "the daemon stops", Cause.COMMANDED),
        ("stop", "stopped by command (alice)", Cause.COMMANDED),
    ],
)
def test_what_gpuward_itself_did_is_named_as_that(kind: EndingKind, why: str, cause: Cause) -> None:
    ending = Ending(kind=kind, why=why, then="rest")

    verdict = classify(replace(SERVING, code=0, commanded=True, ending=ending), ())

    assert (verdict.cause, verdict.reason) == (cause, f"{why} (exit code 0)")
