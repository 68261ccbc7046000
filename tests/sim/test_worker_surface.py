"""The simulated worker's command line, faults, devices and model checks, without starting it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpuward.sim.vllm.arguments import ServeArguments, parse_serve
from gpuward.sim.vllm.devices import CudaOutOfMemory, Device, MemoryRefused, RankMemory, known_devices, visible_devices
from gpuward.sim.vllm.faults import Fault, parse_faults
from gpuward.sim.vllm.model import ConfigRefused, check_config, model_length
from gpuward.sim.vllm.ranks import rank_names
from gpuward.sim.vllm.settings import read_settings

GIB = 1024**3
FOUR = tuple(Device(index, f"GPU-{index}", 80 * GIB, GIB) for index in range(4))


def numbers(visible: tuple[Device, ...]) -> list[int]:
    return [device.number for device in visible]


def test_arguments_are_read_as_vllm_reads_them() -> None:
    words = ["m/x", "--port=9", "-tp", "2", "-pp", "3", "--max_model_len", "16k", "--gpu-memory-utilization", "0.5"]

    arguments = parse_serve([*words, "--served-model-name", "a", "b", "--no-enable-prefix-caching", "--seed", "0"])

    assert arguments == ServeArguments(
        "m/x", "a", "0.0.0.0", 9, 2, 3, 0.5, 16000, 256, 0.0, access_log=True, other_names=("b",)
    )
    assert arguments.world_size == 6


def test_the_model_may_be_a_flag_and_is_its_own_served_name() -> None:
    arguments = parse_serve(["--model", "/models/llama"])

    assert (arguments.model, arguments.served_name, arguments.port) == ("/models/llama", "/models/llama", 8000)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--no-such-flag"], "main.py: error: unrecognized arguments: --no-such-flag"),
        (["-tp", "two"], "main.py serve: error: argument --tensor-parallel-size/-tp: invalid int value: 'two'"),
        (["-tp", "0"], "invalid int value: '0'"),
        (["--kv-transfer-config", "{"], "argument --kv-transfer-config: Value { cannot be converted"),
        (["--max-model-len", "many"], "argument --max-model-len"),
        (["--gpu-memory-utilization", "lots"], "invalid float value: 'lots'"),
        (["--gpu-memory-util", "0.5"], "unrecognized arguments: --gpu-memory-util 0.5"),
    ],
)
def test_a_bad_argument_ends_with_code_2_and_vllm_s_message(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        parse_serve(["m/x", *words])

    assert refusal.value.code == 2
    assert message in capsys.readouterr().err


def test_faults_are_read_by_comma() -> None:
    faults = parse_faults(
        "exit:3@ready+2, oom@start,leak:1.5MiB/s,engine-killed@run+0.5,oom-at:60GiB,error:ecc@run,error:offline"
    )

    assert faults == (
        Fault("exit", 3, "run", 2.0),
        Fault("oom", 0, "start", 0.0),
        Fault("leak", 1572864, "run", 0.0),
        Fault("engine-killed", 0, "run", 0.5),
        Fault("oom-at", 60 * 1024**3, "run", 0.0),
        Fault("error", 0, "run", 0.0, "ecc"),
        Fault("error", 0, "start", 0.0, "offline"),
    )


@pytest.mark.parametrize(
    "text",
    [
        *("boom", "exit", "exit:256", "exit:x", "oom:3", "leak:5", "leak:5GiB", "oom-at:5GiB/s", "overshoot"),
        *("error", "error:boom", "oom@later", "oom@run+", "oom@run-1"),
    ],
)
def test_an_unknown_fault_is_refused_with_the_syntax(text: str) -> None:
    with pytest.raises(ValueError, match=r"exit:N@PHASE"):
        parse_faults(text)


def test_faults_of_a_file_are_for_one_run(tmp_path: Path) -> None:
    file = tmp_path / "faults"
    file.write_text("oom@start\n")

    first, second = (read_settings({"GPUWARD_SIM_FAULT_FILE": str(file)}) for _ in range(2))

    assert ([fault.kind for fault in first.faults], second.faults) == (["oom"], ())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "visible"),
    [
        (None, [0, 1, 2, 3]),
        ("", [0, 1, 2, 3]),
        ("2", [2]),
        ("3,1", [3, 1]),
        ("1,9,2", [1]),
        ("-1", []),
        ("2,2", [2]),
        ("GPU-3,GPU-0", [3, 0]),
    ],
)
def test_visible_devices_follow_the_environment_as_in_cuda(value: str | None, visible: list[int]) -> None:
    environment = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}

    assert numbers(visible_devices(FOUR, environment)) == visible


def test_an_older_vllm_crashes_on_a_uuid() -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "GPU-3", "GPUWARD_SIM_UUIDS": "refuse"}

    with pytest.raises(ValueError, match=r"invalid literal for int\(\) with base 10: 'GPU-3'"):
        visible_devices(FOUR, environment)


def test_the_daemon_describes_the_gpus() -> None:
    described = [{"index": 5, "uuid": "GPU-x", "total_bytes": 7, "reserved_bytes": 1}]

    devices = known_devices({"GPUWARD_SIM_GPUS": json.dumps(described)})

    assert devices == (Device(5, "GPU-x", 7, 1),)


def test_free_memory_below_the_budget_is_refused_in_vllm_s_words(tmp_path: Path) -> None:
    first = RankMemory(FOUR[0], 0, str(tmp_path))
    first.hold(first.requested_bytes(0.5))
    neighbour_pid = 1
    (tmp_path / str(neighbour_pid)).write_text(f"0 {50 * GIB}\n")

    with pytest.raises(MemoryRefused) as refusal:
        RankMemory(FOUR[0], 0, str(tmp_path)).check(0.9)

    assert str(refusal.value) == (
        "ValueError: Free memory on device cuda:0 (29.0/80.0 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 72.0 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
    )


def test_a_budget_of_all_memory_never_fits_as_some_is_reserved() -> None:
    with pytest.raises(MemoryRefused):
        RankMemory(FOUR[0], 0, None).check(1.0)


def test_the_budget_rounds_up() -> None:
    assert RankMemory(Device(0, "GPU-0", 1001, 0), 0, None).requested_bytes(0.5) == 501


def test_an_allocation_that_does_not_fit_names_who_holds_the_memory(tmp_path: Path) -> None:
    memory = RankMemory(FOUR[0], 0, str(tmp_path))
    memory.hold(10 * GIB)
    (tmp_path / "1").write_text(f"0 {60 * GIB}\n")

    with pytest.raises(CudaOutOfMemory) as failure:
        memory.hold(30 * GIB)

    assert str(failure.value) == (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of "
        "80.00 GiB of which 9.00 GiB is free. Process 1 has 60.00 GiB memory in use. Including non-PyTorch memory, "
        "this process has 10.00 GiB memory in use."
    )


@pytest.mark.parametrize(
    ("words", "visible", "text"),
    [
        (["-tp", "4"], 2, "World size (4) is larger than the number of available GPUs (2) in this node."),
        (["-tp", "2", "-pp", "2"], 3, "World size (4) is larger than the number of available GPUs (3) in this node."),
        (["--gpu-memory-utilization", "1.5"], 1, "Input should be less than or equal to 1"),
        (["--gpu-memory-utilization", "0"], 1, "Input should be greater than 0"),
        ([], 0, "RuntimeError: No CUDA GPUs are available"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_in_vllm_s_words(words: list[str], visible: int, text: str) -> None:
    with pytest.raises(ConfigRefused) as refusal:
        check_config(parse_serve(["m/x", *words]), visible)

    assert text in str(refusal.value)


@pytest.mark.parametrize("model", ["/models/nope", "/a"])
def test_a_missing_absolute_path_is_refused_as_if_it_were_a_hub_name(model: str) -> None:
    with pytest.raises(ConfigRefused) as refusal:
        model_length(parse_serve([model]))

    assert str(refusal.value).startswith("huggingface_hub.errors.HFValidationError: Repo id must be in the form")
    assert f"'{model}'" in str(refusal.value)


def test_a_model_directory_says_how_long_its_context_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 2048}')

    assert model_length(parse_serve([str(tmp_path)])) == 2048
    assert model_length(parse_serve([str(tmp_path), "--max-model-len", "512"])) == 512
    with pytest.raises(ConfigRefused, match=r"max_model_len \(4096\) is greater than the derived max_model_len"):
        model_length(parse_serve([str(tmp_path), "--max-model-len", "4096"]))


def test_ranks_are_titled_as_in_vllm() -> None:
    assert [rank_names(rank, 2, 2).title for rank in range(2)] == ["VLLM::Worker_TP0", "VLLM::Worker_TP1"]
    assert rank_names(3, 2, 4).title == "VLLM::Worker_PP1_TP1"
