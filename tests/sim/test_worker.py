"""The simulated worker as a supervisor meets it: a real process tree, its signals, log, endpoints and exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.sim.simulated_worker import (
    A_COMPLETION,
    GIB,
    Start,
    one_that_ends,
    wait_gone,
)
from tests.waiting import eventually

from gpuward.sim.claims import write_claim
from gpuward.sim.gpus import SimulatedGpus

pytestmark = pytest.mark.e2e


def test_a_ready_worker_answers_as_vllm_does(start: Start) -> None:
    worker = start("--served-model-name", "llama", "--max-model-len", "2048").ready()

    model = worker.get("/v1/models")["data"][0]
    assert (model["id"], model["root"], model["max_model_len"]) == ("llama", "org/model", 2048)
    assert worker.ask("GET", "/health") == (200, "")
    assert worker.ask("GET", "/ping") == (200, "")
    assert worker.get("/version") == {"version": "0.32.0"}
    assert worker.get("/load") == {"server_load": 0}
    assert worker.ask("GET", "/is_sleeping")[0] == 404
    assert worker.ask("GET", "/v1/completions")[0] == 405


def test_the_log_of_a_start_has_the_lines_that_a_status_reads(start: Start) -> None:
    log = "\n".join(start().ready().log)

    for line in (
        "(APIServer pid=",
        "(EngineCore pid=",
        "Starting to load model",
        "Loading weights took",
        "GPU KV cache size: ",
        "Starting vLLM server on http://",
    ):
        assert line in log


def test_a_completion_depends_on_its_prompt_alone(start: Start) -> None:
    first, second = start().ready(), start(CUDA_VISIBLE_DEVICES="1").ready()
    request = {"model": "org/model", "prompt": "Hello there", "max_tokens": 5}

    answers = [json.loads(worker.ask("POST", "/v1/completions", request)[1]) for worker in (first, first, second)]

    texts = {answer["choices"][0]["text"] for answer in answers}
    other = json.loads(first.ask("POST", "/v1/completions", request | {"prompt": "Other"})[1])
    assert len(texts) == 1
    assert other["choices"][0]["text"] not in texts
    assert answers[0]["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}
    assert answers[0]["choices"][0]["finish_reason"] == "length"


def test_a_stream_carries_the_same_words_and_ends_with_done(start: Start) -> None:
    worker = start().ready()
    request: dict[str, object] = {"messages": [{"role": "user", "content": "Tell me"}], "max_tokens": 6}

    whole = json.loads(worker.ask("POST", "/v1/chat/completions", request)[1])
    _, body = worker.ask("POST", "/v1/chat/completions", request | {"stream": True})

    events = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    words = [json.loads(event)["choices"][0]["delta"]["content"] for event in events[:-1]]
    assert events[-1] == "[DONE]"
    assert "".join(words) == whole["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("document", "status", "text"),
    [
        ([], 400, "valid dictionary"),
        ({"prompt": 5}, 400, "prompt"),
        ({"prompt": "x", "max_tokens": 0}, 400, "at least 1"),
        ({"prompt": "x", "max_tokens": "5"}, 400, "valid integer"),
        ({"prompt": "x", "max_tokens": 10**9}, 400, "maximum context length is 8192 tokens"),
        ({"prompt": "x", "model": "other"}, 404, "The model `other` does not exist."),
    ],
)
def test_a_bad_request_is_answered(start: Start, document: object, status: int, text: str) -> None:
    worker = start().ready()

    answer = worker.ask("POST", "/v1/completions", document)

    assert answer[0] == status
    assert text in answer[1]
    assert worker.ask("GET", "/health")[0] == 200


def test_metrics_advance_with_generated_tokens(start: Start) -> None:
    worker = start().ready()
    worker.ask("POST", "/v1/completions", {"prompt": "a b c", "max_tokens": 4, "ignore_eos": True})

    _, text = worker.ask("GET", "/metrics")

    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    labels = '{engine="0",model_name="org/model"}'
    assert values[f"vllm:generation_tokens_total{labels}"] == "4.0"
    assert values[f"vllm:prompt_tokens_total{labels}"] == "3.0"
    assert values[f"vllm:iteration_tokens_total_count{labels}"] == "4.0"
    assert values[f"vllm:num_requests_running{labels}"] == "0.0"
    assert values['vllm:request_success_total{engine="0",model_name="org/model",finished_reason="length"}'] == "1.0"


def test_a_worker_holds_its_share_of_the_gpu_it_was_given(start: Start, gpus: SimulatedGpus) -> None:
    worker = start("--gpu-memory-utilization", "0.5", CUDA_VISIBLE_DEVICES="2").ready()

    snapshot = gpus.snapshot()

    assert [gpu.used_bytes for gpu in snapshot.gpus] == [0, 0, gpus.cards[2].total_bytes // 2, 0]
    process = snapshot.gpus[2].processes[0]
    assert (process.pid, process.name) == (worker.children()["VLLM::EngineCore"], "VLLM::EngineCore")


def test_an_unpinned_worker_lands_on_gpu_0(start: Start, gpus: SimulatedGpus) -> None:
    start(CUDA_VISIBLE_DEVICES="").ready()

    assert [bool(gpu.used_bytes) for gpu in gpus.snapshot().gpus] == [True, False, False, False]


def test_a_worker_on_several_gpus_has_a_titled_process_on_each(start: Start, gpus: SimulatedGpus) -> None:
    worker = start("-tp", "2", CUDA_VISIBLE_DEVICES="3,1").ready()

    children = worker.children()
    holders = [[process.pid for process in gpu.processes] for gpu in gpus.snapshot().gpus]
    assert set(children) == {"VLLM::EngineCore", "VLLM::Worker_TP0", "VLLM::Worker_TP1"}
    assert holders == [[], [children["VLLM::Worker_TP1"]], [], [children["VLLM::Worker_TP0"]]]
    assert Path(f"/proc/{children['VLLM::EngineCore']}/comm").read_text() == "VLLM::EngineCor\n"
    assert len(Path(f"/proc/{children['VLLM::EngineCore']}/cmdline").read_bytes()) <= len("VLLM::EngineCore") + 1


def test_sigterm_ends_a_ready_worker_with_code_0_and_nothing_left(start: Start, gpus: SimulatedGpus) -> None:
    worker = start("-tp", "2").ready()
    children = worker.children()

    worker.process.terminate()

    assert worker.ended() == 0
    assert all(wait_gone(pid) for pid in children.values())
    assert all(gpu.used_bytes == 0 for gpu in gpus.snapshot().gpus)


def test_sigterm_with_a_request_waits_for_the_client_to_hang_up(start: Start) -> None:
    worker = start(GPUWARD_SIM_TOKEN_S="5").ready()
    engine = worker.children()["VLLM::EngineCore"]
    client = socket.create_connection(("127.0.0.1", worker.port))
    client.sendall(A_COMPLETION)
    worker.ask("GET", "/health")

    worker.process.terminate()
    worker.until("Waiting for connections to close.")

    assert wait_gone(engine)
    assert not wait_gone(worker.process.pid, 0.2)
    client.close()
    assert worker.ended() == 0


def test_a_shutdown_timeout_lets_running_requests_finish(start: Start) -> None:
    worker = start("--shutdown-timeout", "20", GPUWARD_SIM_TOKEN_S="0.02").ready()
    client = socket.create_connection(("127.0.0.1", worker.port), timeout=10)
    client.sendall(A_COMPLETION)
    worker.ask("GET", "/health")

    worker.process.terminate()
    answer = client.recv(65536)
    client.close()

    assert b"200 OK" in answer
    assert worker.ended() == 0


def test_without_a_shutdown_timeout_a_request_ends_as_200_with_finish_reason_abort(start: Start) -> None:
    worker = start(GPUWARD_SIM_TOKEN_S="0.05").ready()
    client = socket.create_connection(("127.0.0.1", worker.port), timeout=10)
    client.sendall(A_COMPLETION)
    eventually(
        lambda: re.search(r"vllm:generation_tokens_total{[^}]*} [1-9]", str(worker.ask("GET", "/metrics"))), within_s=5
    )

    worker.process.terminate()
    answer = b"".join(iter(lambda: client.recv(65536), b""))  # head and body may come apart
    client.close()

    assert b"200 OK" in answer
    assert b'"finish_reason": "abort"' in answer
    assert worker.ended() == 0


def test_a_worker_that_drains_answers_500_to_what_is_new(start: Start) -> None:
    worker = start("--shutdown-timeout", "20", GPUWARD_SIM_TOKEN_S="0.1").ready()
    running = socket.create_connection(("127.0.0.1", worker.port), timeout=10)
    running.sendall(A_COMPLETION)
    worker.ask("GET", "/health")

    worker.process.terminate()
    worker.until("mode=drain")
    late = socket.create_connection(("127.0.0.1", worker.port), timeout=10)
    late.sendall(A_COMPLETION)
    refused, finished = late.recv(65536), running.recv(65536)
    late.close()
    running.close()

    assert b"500 Internal Server Error" in refused
    assert b"200 OK" in finished
    assert worker.ended() == 0


def test_a_sigterm_while_loading_is_lost_and_a_second_ends_it_by_sigint(start: Start) -> None:
    worker = start(GPUWARD_SIM_START_S="30").until("Initializing a V1 LLM engine")
    engine = worker.children()["VLLM::EngineCore"]

    worker.process.terminate()
    assert not wait_gone(worker.process.pid, 0.3)
    worker.process.terminate()

    assert worker.ended() == -signal.SIGINT
    assert wait_gone(engine)


def test_the_death_of_the_engine_gives_503_then_exit_code_0(start: Start) -> None:
    worker = start(GPUWARD_SIM_WATCHDOG_S="2").ready()

    os.kill(worker.children()["VLLM::EngineCore"], signal.SIGKILL)
    worker.until("EngineDeadError")

    assert worker.ask("GET", "/health") == (503, "")
    assert worker.ended() == 0


def test_the_death_of_a_rank_takes_the_engine_and_the_other_ranks_along(start: Start) -> None:
    worker = start("-tp", "3").ready()
    children = worker.children()

    os.kill(children["VLLM::Worker_TP1"], signal.SIGKILL)

    worker.until("Worker proc VllmWorker-1 died unexpectedly (exit code: None)")
    assert worker.ended() == 0
    assert all(wait_gone(pid) for pid in children.values())


def test_engine_and_ranks_survive_the_api_server_and_hold_their_memory(start: Start, gpus: SimulatedGpus) -> None:
    worker = start("-tp", "2").ready()
    children = worker.children()

    worker.process.kill()
    worker.process.wait(10)

    assert not any(wait_gone(pid, 0.1) for pid in children.values())
    assert [bool(gpu.used_bytes) for gpu in gpus.snapshot().gpus] == [True, True, False, False]
    with socket.create_server(("127.0.0.1", worker.port)):
        pass  # the port is free at once; the GPU is not
    os.kill(children["VLLM::EngineCore"], signal.SIGKILL)
    assert all(wait_gone(pid) for pid in children.values())


def test_a_frozen_engine_leaves_health_at_200_and_completions_hanging(start: Start) -> None:
    worker = start().ready()
    worker.ask("POST", "/sim/fault", {"fault": "hang"})

    client = socket.create_connection(("127.0.0.1", worker.port), timeout=0.3)
    client.sendall(A_COMPLETION)
    with client, pytest.raises(TimeoutError):
        client.recv(1)

    assert worker.ask("GET", "/health")[0] == 200


def test_a_port_with_a_listener_ends_the_start_with_errno_98(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        worker = start("--port", str(holder.getsockname()[1]))

        assert worker.ended() == 1

    assert any("OSError: [Errno 98] Address already in use" in line for line in worker.log)


def test_the_port_is_bound_while_loading_but_nobody_listens(start: Start) -> None:
    worker = start(GPUWARD_SIM_START_S="30").until("Initializing a V1 LLM engine")

    with pytest.raises(ConnectionRefusedError):
        worker.ask("GET", "/health")
    with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
        other.bind(("127.0.0.1", worker.port))


def test_a_gpu_in_use_ends_the_start_with_vllm_s_sentence_before_the_wrapper(
    start: Start, gpus: SimulatedGpus, tmp_path: Path
) -> None:
    write_claim(str(tmp_path / "claims"), {"0": 40 * GIB})

    worker = start()

    assert worker.ended() == 1
    cause = next(n for n, line in enumerate(worker.log) if "ValueError: Free memory on device cuda:0 (" in line)
    wrapper = next(
        n for n, line in enumerate(worker.log) if "Engine core initialization failed. See root cause" in line
    )
    assert cause < wrapper
    assert "{'EngineCore': 1}" in worker.log[wrapper]


def test_of_two_starts_at_once_on_one_gpu_one_runs_out_of_memory(start: Start, gpus: SimulatedGpus) -> None:
    both = [start(CUDA_VISIBLE_DEVICES="1", GPUWARD_SIM_START_S="0.4") for _ in range(2)]

    loser = one_that_ends(both)

    assert loser.ended() == 1
    ways = ("CUDA out of memory", "Free memory on device", "No available memory for the cache blocks")
    assert any(way in line for line in loser.log for way in ways)
    assert next(worker for worker in both if worker is not loser).ready()
    gpu = gpus.snapshot().gpus[1]
    assert sum(process.used_bytes or 0 for process in gpu.processes) <= (gpu.total_bytes or 0)


def test_what_a_neighbour_takes_while_the_engine_measures_is_charged_to_it(start: Start, tmp_path: Path) -> None:
    worker = start(GPUWARD_SIM_START_S="1.0").until("Starting to load model")

    write_claim(str(tmp_path / "claims"), {"0": 75 * GIB})

    assert worker.ended() == 1
    assert any("No available memory for the cache blocks" in line for line in worker.log)


def test_what_a_neighbour_gives_back_while_the_engine_measures_breaks_it(start: Start, tmp_path: Path) -> None:
    write_claim(str(tmp_path / "claims"), {"0": 5 * GIB})
    worker = start(GPUWARD_SIM_START_S="1.0").until("Starting to load model")

    write_claim(str(tmp_path / "claims"), {"0": 0})

    assert worker.ended() == 1
    assert any("Error in memory profiling. Initial free memory" in line for line in worker.log)


def test_a_context_longer_than_the_cache_is_refused_with_the_length_that_fits(start: Start) -> None:
    worker = start("--gpu-memory-utilization", "0.03", "--max-model-len", "100000")

    assert worker.ended() == 1
    assert any("larger than the available KV cache memory" in line for line in worker.log)
    assert any("estimated maximum model length is" in line for line in worker.log)


def test_more_ranks_than_gpus_end_the_start_with_code_1(start: Start) -> None:
    worker = start("--tensor-parallel-size", "9")

    assert worker.ended() == 1
    assert any("World size (9) is larger than the number of available GPUs (4)" in line for line in worker.log)


def test_an_idle_worker_uses_no_cpu_and_little_memory(start: Start) -> None:
    worker = start("-tp", "2").ready()
    pids = [worker.process.pid, *worker.children().values()]

    def cpu_ticks() -> int:
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split() for pid in pids]
        return sum(int(fields[11]) + int(fields[12]) for fields in stats)

    before = cpu_ticks()
    wait_gone(worker.process.pid, 1.0)

    assert cpu_ticks() - before <= 1
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    assert int(status.partition("VmRSS:")[2].split()[0]) <= 20 * 1024


def test_help_tells_how_to_use_it() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "gpuward.sim.vllm.worker", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )

    assert "serve MODEL" in shown.stdout
    assert "GPUWARD_SIM_FAULT" in shown.stdout
