"""What a client can write into a worker's log is no cause; what its engine says is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gpuward.config.host import SignatureRule
from gpuward.host.log_reader import LogReader
from gpuward.policy.diagnosis.causes import Cause, own_signatures
from gpuward.policy.diagnosis.verdict import RunEnd, Verdict, classify, judge, nothing_found

SERVING = RunEnd(code=0, signal=None, phase="ready")
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
ECC = "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered"
START = (
    "(APIServer pid=4100) INFO 11-20 09:10:07 [api_server.py:1896] vLLM API server version 0.32.0",
    "(EngineCore pid=4210) INFO 11-20 09:10:20 [core.py:77] Initializing a V1 LLM engine",
    "(Worker_TP0 pid=4300) INFO 11-20 09:10:21 [gpu_worker.py:77] loads",
)
MARK = "INFO:     Application startup complete."
SERVED = (*START, MARK, '(APIServer pid=4100) INFO:     127.0.0.1:5 - "GET /health HTTP/1.1" 200 OK')
STATS = "(APIServer pid=4100) INFO 11-20 09:12:00 [loggers.py:127] Engine 000: Avg prompt throughput: 1 tokens/s"
API = "(APIServer pid=4100) ERROR 11-20 10:29:00 [serving.py:280] "
ENGINE = "(EngineCore pid=4210) ERROR 11-20 10:29:00 [core.py:1512] "
BARE_TRACEBACK = (
    "ERROR:    Exception in ASGI application",
    "Traceback (most recent call last):",
    '  File "x.py", line 1',
)
KILLED = "(APIServer pid=4100) ERROR 11-20 10:30:31 [core_client.py:564] Engine core proc EngineCore died unexpectedly"


def after_serving(*lines: str) -> Verdict:
    return classify(SERVING, (*SERVED, *lines, KILLED))


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param((API + f"ErrorInfo(message='The model `{OOM}` does not exist.')",), id="model-name"),
        pytest.param((API + f"ErrorInfo(message='The model `{ECC}` does not exist.')",), id="hardware"),
        pytest.param((API + "message='The model `a", API + OOM), id="lines-of-one-message"),
        pytest.param((API + "message='The model `a\n", "\r" + ENGINE + OOM), id="carriage-return"),
        pytest.param((*BARE_TRACEBACK, f"KeyError: '{OOM}'"), id="bare-traceback"),
        pytest.param((*BARE_TRACEBACK, "KeyError: 'a", OOM), id="bare-newline"),
        pytest.param((*BARE_TRACEBACK, "KeyError: 'a", ENGINE.replace("4210", "7") + OOM), id="forged-prefix"),
        pytest.param((*BARE_TRACEBACK, "x", STATS.replace("4100", "7"), OOM), id="forged-prefix-of-the-server"),
        pytest.param((*BARE_TRACEBACK, "x", "[rank0]:[E1120 10:00:00] CUDA error: out of memory"), id="forged-native"),
        pytest.param((*BARE_TRACEBACK, "x", 'INFO:     1.2.3.4:5 - "GET / HTTP/1.1" 200', OOM), id="forged-access"),
        pytest.param(
            ("(APIServer pid=4100) Traceback (most recent call last):", f"(APIServer pid=4100) {OOM}"), id="own"
        ),
        pytest.param((f'INFO:     127.0.0.1:5 - "GET /{OOM} HTTP/1.1" 404',), id="access"),
        pytest.param((f"WARNING:  Invalid HTTP request received: {OOM}",), id="uvicorn"),
        pytest.param(("/x.py:1: UserWarning: Pydantic serializer warnings:", f"  [input_value='{OOM}']"), id="warning"),
        pytest.param((ENGINE.replace("core.py", "dump_input.py") + f"req_id='{OOM}'",), id="request-dumped"),
        pytest.param(("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.",), id="xid"),
        pytest.param((ENGINE + "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.",), id="xid-of-the-engine"),
    ],
)
def test_what_a_client_can_write_is_no_cause(lines: tuple[str, ...]) -> None:
    verdict = after_serving(*lines)

    assert (verdict.cause, verdict.permanent) == (Cause.CRASH, False)
    assert "memory" not in verdict.reason
    assert verdict.evidence == (KILLED,)


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param((ENGINE + OOM,), id="engine"),
        pytest.param((f"(Worker_TP0 pid=4300) {OOM}",), id="bare-text-of-a-worker"),
        pytest.param(
            ("(VllmWorker rank=1 pid=9) ERROR 11-20 10:29:00 [multiproc_executor.py:1] " + OOM,), id="old-name"
        ),
        pytest.param((*BARE_TRACEBACK, "KeyError: 'x'", ENGINE + OOM), id="behind-a-traceback"),
        pytest.param((*BARE_TRACEBACK, "KeyError: 'x'", STATS, "[rank0]:[E1120 10:00:00] " + OOM), id="native-behind"),
        pytest.param(("host-1:77:91 [0] NCCL WARN Cuda failure 2 'out of memory'",), id="nccl"),
        pytest.param(("terminate called after throwing an instance of 'c10::Error'", f"  what():  {OOM}"), id="c++"),
        pytest.param((OOM,), id="bare-exception"),
        pytest.param((API + "The model `CUDA out of memory` does not exist.", ENGINE + OOM), id="beside-a-clients"),
    ],
)
def test_what_the_engine_says_is_the_cause(lines: tuple[str, ...]) -> None:
    verdict = after_serving(*lines)

    assert verdict.cause is Cause.GPU_OOM_RUNTIME
    assert verdict.evidence == (next(line for line in reversed(lines) if "ut of memory" in line),)


@pytest.mark.parametrize("place", ["[engine.py:160]", "engine.py:160]"])
def test_a_version_that_names_no_process_is_believed_by_the_file(place: str) -> None:
    start = ("INFO 11-05 12:03:00 [api_server.py:1] starts", MARK)
    oom = f"ERROR 11-05 12:03:00 {place} OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')"
    end = "CRITICAL 11-05 12:03:03 launcher.py:99] MQLLMEngine is already dead, terminating server process"

    engine = classify(SERVING, (*start, oom, end))
    client = classify(SERVING, (*start, oom.replace("engine.py", "serving_chat.py"), end))
    forged = classify(SERVING, (*start, *BARE_TRACEBACK, oom, end))

    assert [each.cause for each in (engine, client, forged)] == [Cause.GPU_OOM_RUNTIME, Cause.CRASH, Cause.CRASH]


def test_a_client_cannot_name_the_first_error_either() -> None:
    verdict = after_serving(API + "ValueError: the GPU has fallen off the bus", ENGINE + "RuntimeError: BAD_STATUS")

    assert verdict.reason.endswith("first error: RuntimeError: BAD_STATUS")


def test_a_text_of_the_host_counts_in_any_workers_words_but_not_in_a_clients() -> None:
    own = own_signatures([SignatureRule(cause="hang", contains="arena is full", says="it is full")])

    bare = classify(SERVING, ("served", "arena is full"), own)
    named = classify(SERVING, (*SERVED, API + "The model `arena is full` does not exist."), own)

    assert [bare.cause, named.cause] == [Cause.HANG, Cause.CRASH]


@pytest.mark.parametrize("line", [f"(EngineCore pid=4210) {OOM}", OOM, ENGINE + "RuntimeError: x"])
def test_lines_of_the_start_explain_no_death_while_it_served(line: str) -> None:
    verdict = classify(SERVING, (*START, line, MARK, KILLED))

    assert (verdict.cause, verdict.evidence) == (Cause.CRASH, (KILLED,))


def test_waiting_while_it_compiles_is_no_hang_of_a_worker_that_served() -> None:
    waits = (
        "(EngineCore pid=4210) INFO 03-08 17:27:28 [shm_broadcast.py:548] No available shared memory broadcast block"
    )
    waits += " found in 60 seconds."
    start = (*START, waits, waits, waits, waits)

    served = classify(SERVING, (*start, MARK, ENGINE + "RuntimeError: head_dim=16"))
    hung = classify(SERVING, (*start, MARK, waits, waits, ENGINE + "RuntimeError: head_dim=16"))

    assert (served.cause, "head_dim=16" in served.reason) == (Cause.CRASH, True)
    assert hung.cause is Cause.HANG


def test_a_client_has_said_nothing_before_the_worker_serves() -> None:
    line = "(APIServer pid=4100) ERROR 11-20 09:10:08 [serving.py:1] " + ECC

    assert classify(replace(SERVING, code=1, phase="starting"), (*START, line)).cause is Cause.GPU_HARDWARE


def test_a_carriage_return_in_the_log_begins_no_line_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "1.log"
    text = "\n".join(SERVED) + f"\n{API}The model `a\r{ENGINE}{OOM}` does not exist.\r\n{KILLED}\r\n"
    log.write_bytes(text.encode())
    reader = LogReader(log)
    found = nothing_found()

    found.read(reader.lines())
    reader.close()

    assert judge(SERVING, found).cause is Cause.CRASH
    assert judge(SERVING, found).evidence == (KILLED,)


def test_questions_and_what_a_killed_python_says_are_no_evidence() -> None:
    noise = (
        '(APIServer pid=4100) INFO:     127.0.0.1:42522 - "GET /metrics HTTP/1.1" 200 OK',
        'INFO:     127.0.0.1:42522 - "POST /v1/completions HTTP/1.1" 200 OK',
        "/usr/lib/python3.12/multiprocessing/resource_tracker.py:254: UserWarning: resource_tracker: There appear",
        "  warnings.warn('resource_tracker: There appear to be %d '",
        API + "Error with model error=ErrorInfo(message='The model `x` does not exist.')",
        "nanobind: leaked 3 instances!",
        " - leaked instance 0x7f of type",
        "",
    )

    verdict = classify(replace(SERVING, signal=9, code=None), ("served", STATS, *noise * 20))

    assert verdict.evidence == ("served", STATS)
