# ruff: noqa: E501, ISC004, RUF005 - the texts are what they are
"""Failures as users meet them: what no further start can change is said so at once, what may pass is tried again."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from gpuward.policy.diagnosis.causes import Cause
from gpuward.policy.diagnosis.verdict import RunEnd, Verdict, classify

LOGS = Path(__file__).resolve().parents[3].parent / "shared" / "fixtures" / "vllm-logs-2"
STARTING: Final = RunEnd(code=1, signal=None)
SERVING: Final = RunEnd(code=0, signal=None, phase="ready")
CONFIG, CRASH = Cause.CONFIG_ERROR, Cause.CRASH

needs_logs = pytest.mark.skipif(
    not LOGS.is_dir(), reason="the recorded logs (../shared/fixtures/vllm-logs-2) are not here"
)
FULL: Final = {"hf_cache_disk_full", "nccl_shm_full"}
"""Their headers say crash: another try may help. It does not before somebody has made room."""


@pytest.mark.fixtures
@needs_logs
@pytest.mark.parametrize("path", sorted(LOGS.glob("*.txt")), ids=lambda path: path.stem)
def test_a_log_of_a_user_has_the_cause_of_its_header(path: Path) -> None:
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    wanted = CONFIG if path.stem in FULL else Cause(header.split()[2])

    verdict = classify(SERVING if header.endswith("phase: ready") else STARTING, lines)

    assert verdict.cause is wanted
    assert verdict.permanent is (wanted is CONFIG)
    assert verdict.hint or wanted is CRASH


HEAD: Final = (
    "(APIServer pid=4100) INFO 11-20 09:10:07 [utils.py:233] non-default args: {'model_tag': 'org/m'}",
    "(EngineCore pid=4210) INFO 11-20 09:10:20 [core.py:77] Initializing a V1 LLM engine",
    "(EngineCore pid=4210) WARNING 11-20 09:10:21 [x.py:1] Failed to import: OSError: [Errno 28] No space left on device",
)
TAIL: Final = (
    "(APIServer pid=4100) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
)


def start_with(error: str) -> Verdict:
    """The verdict on a start that ends with an exception of the engine."""
    failed = "(EngineCore pid=4210) ERROR 11-20 09:10:31 [core.py:708] "
    lines = (failed + "EngineCore failed to start.", *(failed + line for line in error.splitlines()))
    return classify(STARTING, (*HEAD, *lines, *TAIL))


@pytest.mark.parametrize(
    ("error", "says", "fix"),
    [
        (
            "RuntimeError: The NVIDIA driver on your system is too old (found version 12040).",
            "12040",
            "update the driver",
        ),
        ("Error 803: CUDA driver version is insufficient for CUDA runtime version", "too old", "update the driver"),
        (
            "h:1:1 [0] NCCL WARN Cuda failure 'CUDA driver version is insufficient for CUDA runtime version'\n"
            "torch.distributed.DistBackendError: NCCL error in: x.cpp:1, unhandled cuda error",
            "too old",
            "update the driver",
        ),
        ("pynvml.NVMLError_LibRmVersionMismatch: Driver/library version mismatch", "kernel module", "reboot"),
        ("RuntimeError: No CUDA GPUs are available", "no CUDA device", "nvidia-smi"),
        ("RuntimeError: Found no NVIDIA driver on your system.", "no NVIDIA driver", "install the driver"),
        ("RuntimeError: CUDA error: no CUDA-capable device is detected", "no CUDA device", "nvidia-smi"),
        (
            "ImportError: libcuda.so.1: cannot open shared object file: No such file or directory",
            "libcuda.so.1 is missing",
            "install the driver",
        ),
        (
            "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
            "libcudart.so.12 is missing",
            "LD_LIBRARY_PATH",
        ),
        (
            "ImportError: /lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by x)",
            "GLIBCXX_3.4.32",
            "build",
        ),
        ("ImportError: /v/vllm/_C.abi3.so: undefined symbol: _ZN3c104cuda9SetDevice", "_C.abi3.so", "belong together"),
        ("ImportError: /v/flash_attn_2_cuda.so: undefined symbol: _ZN2at", "flash_attn_2_cuda.so", "belong together"),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device", "architecture", "build"),
        ("AssertionError: Torch not compiled with CUDA enabled", "without CUDA", "belong together"),
        ("RuntimeError: Cannot re-initialize CUDA in forked subprocess.", "forked", '"spawn"'),
        ("OSError: You are trying to access a gated repo.", "gated", "HF_TOKEN"),
        (
            "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has "
            "compute capability 7.5.",
            "needs compute capability 8.0, this GPU has 7.5",
            "--dtype=half",
        ),
        (
            "safetensors_rust.SafetensorError: Error while deserializing header: header too large",
            "header too large",
            "download the model again",
        ),
        (
            "safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata, file not fully "
            "covered",
            "incomplete metadata",
            "download the model again",
        ),
        ("KeyError: 'model.layers.0.self_attn.q_norm.weight'", "q_norm.weight", "supports the model"),
        (
            "ValueError: Loading a/b requires you to execute the configuration file in that repo on your local machine. "
            "Then set the option `trust_remote_code=True` to remove this error.",
            "not trusted",
            "--trust-remote-code",
        ),
        (
            "  Value error, Total number of attention heads (14) must be divisible by tensor parallel size (4). "
            "[type=value_error, input_value=ArgsKwargs]",
            "14 attention heads",
            "divides 14",
        ),
        ("OSError: [Errno 28] No space left on device", "a disk is full", "HF_HOME"),
        ("Error while creating shared memory segment /dev/shm/nccl-E (size 7), error: No space left on device (28)",)
        + ("/dev/shm is too small", "--shm-size"),
        ("Fatal Python error: Bus error", "/dev/shm", "--shm-size"),
        (
            "vllm.exceptions.VLLMValidationError: The supplied chat template string (/t/chat.jinja) appears path-like, but "
            "doesn't exist!",
            "no chat template at /t/chat.jinja",
            "--chat-template",
        ),
        (
            "KeyError: 'invalid tool call parser: nope (chose from { hermes,mistral })'",
            "no tool call parser nope",
            "extra-args",
        ),
        ("ValueError: Couldn't instantiate the backend tokenizer from one of:", "no tokenizer", "--tokenizer"),
        (
            "json.decoder.JSONDecodeError: Expecting ',' delimiter: line 3 column 1 (char 40)",
            "Expecting ',' delimiter",
            "correct it",
        ),
        (
            "OSError: It looks like the config file at '/m/config.json' is not a valid JSON file.",
            "/m/config.json is no JSON",
            "download the model again",
        ),
        (
            "FileNotFoundError: [Errno 2] No such file or directory: '/l/adapter_config.json'",
            "/l/adapter_config.json",
            "--lora-modules",
        ),
        ("RuntimeError: NIXL is not available", "nixl", "install nixl"),
        ("AssertionError: Not enough allowed NUMA nodes to bind threads of 2 CPUWorkers.", "NUMA", "THREADS_BIND"),
        (
            "ValueError: Available memory on node 0 (9.27/11.96 GiB) on kv cache allocation is less than requested memory "
            "for kv (1000.0 GiB).",
            "1000.0 GiB are asked for",
            "VLLM_CPU_KVCACHE_SPACE",
        ),
        ("  Value error, model type `foo` is not known [type=value_error]", "model type `foo` is not known", "correct"),
        (
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder and outgoing "
            "traffic has been disabled.",
            "downloads are off",
            "HF_HUB_OFFLINE",
        ),
    ],
)
def test_what_a_restart_cannot_change_is_final_and_says_the_fix(error: str, says: str, fix: str) -> None:
    verdict = start_with(error)

    assert (verdict.cause, verdict.permanent) == (CONFIG, True), verdict
    assert says in verdict.reason
    assert fix in verdict.hint


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            "huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate the file on the Hub "
            "and we cannot find the requested files in the local cache. Please check your connection and try again.",
            CRASH,
        ),
        (
            "OSError: We couldn't connect to 'https://hub' to load the files. Check your internet connection or see",
            CRASH,
        ),
        ("Exception: Unable to create lease. Check etcd server status at http://localhost:2379", CRASH),
        ("torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients. 1/2 clients joined.",)
        + (Cause.START_TIMEOUT,),
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",)
        + (Cause.HOST_OOM,),
    ],
)
def test_what_may_pass_is_tried_again(error: str, cause: Cause) -> None:
    verdict = start_with(error)

    assert (verdict.cause, verdict.permanent) == (cause, False)
    assert verdict.hint


def test_an_old_engine_that_died_of_memory_says_so() -> None:
    lines = (
        "INFO:     Application startup complete.",
        "ERROR 03-19 10:55:18 [engine.py:158] OutOfMemoryError('CUDA out of memory. Tried to allocate 128.00 MiB. GPU 0 has a "
        "total capacity of 79.33 GiB of which 16.00 MiB is free. Process 36891 has 79.29 GiB memory in use.')",
        "ERROR 03-19 10:55:18 [serving_chat.py:677] vllm.engine.multiprocessing.MQEngineDeadError: Engine loop is not running",
        "CRITICAL 03-19 10:55:19 [launcher.py:116] MQLLMEngine is already dead, terminating server process",
    )

    assert classify(SERVING, lines).cause is Cause.GPU_OOM_RUNTIME


def test_the_signal_of_a_process_of_the_engine_is_said() -> None:
    line = "(EngineCore pid=4210) ERROR 11-22 20:22:23 [multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly"

    verdict = classify(SERVING, (f"{line} (exit code: -9), shutting down executor.",))

    assert (
        "a process of the engine was killed by signal 9 (SIGKILL) while serving, and not by gpuward" in verdict.reason
    )


def test_an_option_that_wins_over_the_utilization_is_in_the_hint() -> None:
    assert "--kv-cache-memory-bytes" in start_with("ValueError: No available memory for the cache blocks.").hint


def test_a_warning_is_no_cause() -> None:
    assert classify(STARTING, HEAD).cause is CRASH
