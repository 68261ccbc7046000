"""Faults on command: the simulated worker fails as the real one does, in its words, which the classifier knows."""

from __future__ import annotations

import math

import pytest
from tests.sim.simulated_worker import GIB, READY, Start, wait_gone

from gpuward.policy.diagnosis.causes import Cause
from gpuward.policy.diagnosis.verdict import RunEnd, classify
from gpuward.sim.gpus import SimulatedGpus
from gpuward.sim.vllm.errors import ERRORS

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("oom@start", "CUDA out of memory. Tried to allocate"),
        ("oom-above:0.85@start", "CUDA out of memory. Tried to allocate"),
        ("cuda-fault@start", "CUDA error: an illegal memory access was encountered"),
    ],
)
def test_a_fault_at_the_start_speaks_as_vllm_does(start: Start, fault: str, text: str) -> None:
    worker = start(GPUWARD_SIM_FAULT=fault)

    assert worker.ended() == 1
    assert any(text in line for line in worker.log)


CAUSES = {
    "sampler-oom": Cause.GPU_OOM_STARTUP,
    "ecc": Cause.GPU_HARDWARE,
    "nccl": Cause.CUDA_FAULT,
    "dist-port": Cause.PORT_CONFLICT,
    "side-channel": Cause.PORT_CONFLICT,
    "rpc-timeout": Cause.HANG,
    "offline": Cause.CONFIG_ERROR,
    "architecture": Cause.CONFIG_ERROR,
    "engine-timeout": Cause.START_TIMEOUT,
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_by_name_is_told_in_words_that_have_a_cause(start: Start, name: str) -> None:
    worker = start(GPUWARD_SIM_FAULT=f"error:{name}@start")

    code = worker.ended()
    verdict = classify(RunEnd(code=code, signal=None), worker.log)

    assert (code, verdict.cause) == (1, CAUSES[name])
    assert ERRORS[name].text[:40] in "".join(worker.log)


def test_graph_capture_beyond_the_budget_is_kept_and_said(start: Start, gpus: SimulatedGpus) -> None:
    worker = start("--gpu-memory-utilization", "0.5", GPUWARD_SIM_FAULT="overshoot:2GiB").ready()

    assert any("Graph capturing finished" in line and "took 2.00 GiB" in line for line in worker.log)
    assert gpus.snapshot().gpus[0].used_bytes == math.ceil(gpus.cards[0].total_bytes * 0.5) + 2 * GIB


def test_graph_capture_that_finds_no_room_runs_out_of_memory(start: Start) -> None:
    worker = start("--gpu-memory-utilization", "0.95", GPUWARD_SIM_FAULT="overshoot:6GiB")

    assert worker.ended() == 1
    assert any("CUDA out of memory. Tried to allocate 6.00 GiB" in line for line in worker.log)


def test_an_engine_runs_out_at_the_level_that_it_was_given(start: Start) -> None:
    worker = start("--gpu-memory-utilization", "0.5", GPUWARD_SIM_FAULT="leak:40GiB/s@run,oom-at:45GiB")

    assert worker.ended() == 0
    assert any("CUDA out of memory" in line for line in worker.log)


def test_an_engine_that_claims_less_than_the_level_does_not_run_out(start: Start) -> None:
    start(GPUWARD_SIM_FAULT="oom-above:0.95@start").ready()


@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [
        ("exit:3@start", 3, ""),
        ("exit:7@run", 7, READY),
        ("oom@start", 1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 896.00 MiB"),
        ("oom@run", 0, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 896.00 MiB"),
        ("engine-killed@start", 1, "Failed core proc(s): {'EngineCore': -9}"),
        ("engine-killed@run+0.05", 0, "EngineDeadError"),
        ("leak:400GiB/s", 0, "EngineCore encountered a fatal error."),
    ],
)
def test_a_fault_ends_the_worker_as_the_real_one_ends(start: Start, fault: str, code: int, text: str) -> None:
    worker = start(GPUWARD_SIM_FAULT=fault)

    assert worker.ended() == code
    assert any(text in line for line in worker.log)
    assert worker.children() == {}


def test_a_worker_that_ignores_sigterm_needs_sigkill(start: Start) -> None:
    worker = start(GPUWARD_SIM_FAULT="ignore-term").ready()

    worker.process.terminate()

    assert not wait_gone(worker.process.pid, 0.3)
    assert worker.ask("GET", "/health")[0] == 200


def test_a_fault_on_command_is_answered_before_it_strikes(start: Start) -> None:
    worker = start().ready()

    answer = worker.ask("POST", "/sim/fault", {"fault": "exit:5@run+0.05"})

    assert answer[0] == 200
    assert worker.ended() == 5


def test_an_unknown_fault_on_command_is_refused(start: Start) -> None:
    worker = start().ready()

    status, text = worker.ask("POST", "/sim/fault", {"fault": "boom"})

    assert status == 400
    assert "unknown fault 'boom'" in text
