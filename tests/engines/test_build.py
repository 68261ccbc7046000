"""What a worker is started with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gpuward.config.fleet import Pool
from gpuward.engines.build import launch
from gpuward.engines.launch import CannotLaunch, Devices, HostContext, Launch
from gpuward.host.address import Readiness

BLOCK = range(20064, 20128)
TWO_GPUS = Devices(indices=(4, 5), uuids=("GPU-d4", "GPU-e5"))
ONE_GPU = Devices(indices=(3,), uuids=("GPU-c3",))
REAL = HostContext(
    python="/opt/gpuward/bin/python", simulated=False, inherited_env={"PATH": "/usr/bin", "HF_TOKEN": "s"}
)
SIMULATED = replace(REAL, simulated=True, sim_env={"GPUWARD_SIM_CLAIMS": "/run/claims", "GPUWARD_SIM_GPUS": "g"})


def a_vllm_pool(**settings: object) -> Pool:
    return Pool(**{"name": "decode", "model": "/models/m", "executable": "/opt/vllm/bin/vllm", **settings})  # type: ignore[arg-type]


def a_command_pool(*words: str, **settings: object) -> Pool:
    return Pool(**{"name": "aux", "engine": "command", "gpus_per_worker": 0, "command": words, **settings})  # type: ignore[arg-type]


def launched(pool: Pool, devices: Devices = ONE_GPU, host: HostContext = REAL, index: int = 0) -> Launch:
    return launch(pool, f"{pool.name}/{index}", index, devices, BLOCK, host)


def test_a_vllm_worker_is_pinned_by_pci_index_in_rank_order() -> None:
    started = launched(a_vllm_pool(gpus_per_worker=2), Devices(indices=(5, 4), uuids=("GPU-e5", "GPU-d4")))

    assert started.env["CUDA_VISIBLE_DEVICES"] == "5,4"
    assert started.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert started.env["GPUWARD_WORKER"] == "decode/0"


def test_a_pool_that_pins_by_uuid_gets_uuids() -> None:
    started = launched(a_vllm_pool(gpus_per_worker=2, pin="uuid"), TWO_GPUS)

    assert started.env["CUDA_VISIBLE_DEVICES"] == "GPU-d4,GPU-e5"


def test_a_vllm_worker_gets_the_arguments_of_its_pool() -> None:
    pool = a_vllm_pool(
        gpus_per_worker=4,
        pipeline_parallel_size=2,
        gpu_memory_utilization=0.85,
        max_model_len=16384,
        extra_args=("--kv-transfer-config", '{"kv_connector":"NixlConnector"}'),
    )
    four = Devices(indices=(0, 1, 2, 3), uuids=("GPU-0", "GPU-1", "GPU-2", "GPU-3"))

    started = launched(pool, four)

    assert started.argv == (
        "/opt/vllm/bin/vllm", "serve", "/models/m", "--host", "127.0.0.1", "--port", "20064",
        "--tensor-parallel-size", "2", "--pipeline-parallel-size", "2", "--gpu-memory-utilization", "0.85",
        "--max-model-len", "16384", "--kv-transfer-config", '{"kv_connector":"NixlConnector"}',
    )  # fmt: skip


def test_looks_of_supervision_are_kept_out_of_the_log_where_the_version_can(tmp_path: Path) -> None:
    packages = tmp_path / "lib/python3.12/site-packages"
    (tmp_path / "bin").mkdir()
    packages.mkdir(parents=True)
    (tmp_path / "bin" / "vllm").touch(mode=0o755)

    def flags(version: str, *extra: str) -> tuple[str, ...]:
        for old in packages.iterdir():
            (old / "METADATA").unlink()
            old.rmdir()
        (packages / f"vllm-{version}.dist-info").mkdir()
        (packages / f"vllm-{version}.dist-info" / "METADATA").write_text(f"Version: {version}\n")
        argv = launched(a_vllm_pool(executable=str(tmp_path), extra_args=extra)).argv
        return argv[argv.index("0.9") + 1 :]

    assert flags("0.15.1") == ()
    assert flags("0.16.0") == ("--disable-access-log-for-endpoints", "/health,/metrics,/ping")
    stated = ("--disable_access_log_for_endpoints=/x",)
    assert flags("0.17.9", *stated) == stated
    assert flags("0.18.0", *stated) == (*stated, "--shutdown-timeout", "30")
    own = (*stated, "--shutdown_timeout=5")
    assert flags("0.33.0", *own) == own


@pytest.mark.parametrize(
    ("extra", "env", "key"),
    [
        (("--api-key", "a", "b"), {}, "a"),
        (("--api_key=a",), {"VLLM_API_KEY": "e"}, "a"),
        ((), {"VLLM_API_KEY": "e"}, "e"),
        ((), {}, ""),
    ],
)
def test_a_worker_with_an_api_key_is_asked_with_it(extra: tuple[str, ...], env: dict[str, str], key: str) -> None:
    readiness = launched(a_vllm_pool(extra_args=extra, env=env)).readiness

    assert readiness.key == key
    assert "'a'" not in repr(readiness)


def test_a_worker_with_tls_is_asked_over_tls() -> None:
    readiness = launched(a_vllm_pool(extra_args=("--ssl-keyfile", "k.pem", "--ssl_certfile=c.pem"))).readiness

    assert readiness.url == "https://127.0.0.1:20064/health"


def test_a_python_as_executable_runs_the_module_with_its_tools_in_path() -> None:
    started = launched(a_vllm_pool(executable="/opt/vllm/bin/python3.11"))

    assert started.argv[:4] == ("/opt/vllm/bin/python3.11", "-m", "vllm.entrypoints.cli.main", "serve")
    assert started.env["PATH"] == "/opt/vllm/bin:/usr/bin"


def test_the_directory_of_a_virtual_environment_is_an_executable(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vllm").touch()

    started = launched(a_vllm_pool(executable=str(tmp_path)))

    assert started.argv[:2] == (f"{tmp_path}/bin/vllm", "serve")


def test_a_virtual_environment_without_the_script_runs_the_module(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()

    started = launched(a_vllm_pool(executable=str(tmp_path)))

    assert started.argv[:3] == (f"{tmp_path}/bin/python", "-m", "vllm.entrypoints.cli.main")


def test_without_an_executable_vllm_is_looked_up_in_path(tmp_path: Path) -> None:
    script = tmp_path / "vllm"
    script.touch(mode=0o755)
    host = replace(REAL, inherited_env={"PATH": f"/nowhere:{tmp_path}"})

    started = launched(a_vllm_pool(executable=None), host=host)

    assert started.argv[0] == str(script)


def test_no_vllm_anywhere_is_refused_with_the_way_out(tmp_path: Path) -> None:
    host = replace(REAL, inherited_env={"PATH": str(tmp_path)})

    with pytest.raises(CannotLaunch, match=r"no 'vllm' in PATH nor beside /opt/gpuward/bin/python; set 'executable'"):
        launched(a_vllm_pool(executable=None), host=host)


def test_each_internal_port_lies_in_the_block_and_none_is_the_http_port() -> None:
    env = launched(a_vllm_pool()).env

    ports = [int(env[key]) for key in env if key.startswith("VLLM_") and key.endswith("_PORT")]

    assert len(ports) == len(set(ports)) == 5
    assert set(ports) < set(BLOCK)
    assert BLOCK[0] not in ports
    assert int(env["VLLM_PORT"]) == max(ports)
    assert BLOCK[-1] - int(env["VLLM_PORT"]) >= 50


def test_vllm_makes_its_sockets_in_a_directory_of_the_run_unless_the_pool_says_where() -> None:
    assert launched(a_vllm_pool()).sockets_variable == "VLLM_RPC_BASE_PATH"
    assert launched(a_vllm_pool(env={"VLLM_RPC_BASE_PATH": "/data"})).sockets_variable == ""


def test_nixl_has_room_for_eight_data_parallel_ranks() -> None:
    env = launched(a_vllm_pool()).env
    nixl = int(env["VLLM_NIXL_SIDE_CHANNEL_PORT"])

    others = {int(env[key]) for key in env if key.endswith("_PORT") and "NIXL" not in key}

    assert others.isdisjoint(range(nixl, nixl + 8))


def test_a_pool_port_counts_up_by_worker_and_leaves_the_internal_block_alone() -> None:
    started = launched(a_vllm_pool(port=8000, workers=3), index=2)

    assert started.port == 8002
    assert started.argv[started.argv.index("--port") + 1] == "8002"
    assert int(started.env["VLLM_PORT"]) in BLOCK


def test_a_variable_that_the_pool_sets_wins_over_the_engine_default() -> None:
    started = launched(a_vllm_pool(env={"VLLM_NIXL_SIDE_CHANNEL_PORT": "5600", "VLLM_HOST_IP": "10.0.0.2"}))

    assert started.env["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "5600"
    assert started.env["VLLM_HOST_IP"] == "10.0.0.2"


def test_a_block_too_small_for_vllm_is_refused() -> None:
    with pytest.raises(CannotLaunch, match="needs 16 ports, its block has 8"):
        launch(a_vllm_pool(), "decode/0", 0, ONE_GPU, range(20000, 20008), REAL)


def test_readiness_of_vllm_is_health_listener_and_model() -> None:
    started = launched(a_vllm_pool())

    assert started.readiness == Readiness(url="http://127.0.0.1:20064/health", port=20064, model="/models/m")


@pytest.mark.parametrize(
    "extra",
    [("--served-model-name", "llama", "alias"), ("--served-model-name=llama",), ("--served_model_name", "llama")],
)
def test_the_served_name_is_what_readiness_asks_for(extra: tuple[str, ...]) -> None:
    assert launched(a_vllm_pool(extra_args=extra)).readiness.model == "llama"


def test_a_host_among_extra_args_replaces_loopback() -> None:
    anywhere = launched(a_vllm_pool(extra_args=("--host", "0.0.0.0")))
    elsewhere = launched(a_vllm_pool(extra_args=("--host=10.0.0.7",)))

    assert anywhere.argv.count("--host") == 1
    assert anywhere.readiness.url == "http://127.0.0.1:20064/health"
    assert "127.0.0.1" not in elsewhere.argv
    assert elsewhere.readiness.url == "http://10.0.0.7:20064/health"


@pytest.mark.parametrize("word", ["--port", "--port=9000", "-tp", "--gpu_memory_utilization=0.5", "--device-ids"])
def test_a_flag_that_gpuward_answers_for_is_refused_among_extra_args(word: str) -> None:
    with pytest.raises(CannotLaunch, match="in extra-args; use the key"):
        launched(a_vllm_pool(extra_args=(word, "1")))


def test_a_vllm_pool_without_a_model_is_refused() -> None:
    with pytest.raises(CannotLaunch, match="pool 'decode' has no model"):
        launched(a_vllm_pool(model=None))


def test_a_gpu_worker_with_an_empty_device_set_is_refused() -> None:
    with pytest.raises(CannotLaunch, match=r"cannot start decode/0: it needs 1 GPUs and its device set has 0"):
        launched(a_vllm_pool(), Devices())


def test_a_device_set_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(CannotLaunch, match="needs 4 GPUs and its device set has 2"):
        launched(a_vllm_pool(gpus_per_worker=4), TWO_GPUS)


def test_a_device_set_that_names_one_gpu_twice_is_refused() -> None:
    with pytest.raises(CannotLaunch, match="device set is broken"):
        launched(a_vllm_pool(gpus_per_worker=2), Devices(indices=(1, 1), uuids=("GPU-1", "GPU-1")))


def test_vllm_on_a_simulated_host_is_the_simulated_worker_with_the_same_arguments() -> None:
    pool = a_vllm_pool(executable=None, extra_args=("--enforce-eager",))

    simulated = launched(pool, host=SIMULATED)

    assert simulated.argv[:3] == ("/opt/gpuward/bin/python", "-m", "gpuward.sim.vllm.worker")
    quiet = ("--disable-access-log-for-endpoints", "/health,/metrics,/ping")
    assert simulated.argv[3:] == (
        *launched(a_vllm_pool(extra_args=("--enforce-eager",))).argv[1:],
        *quiet,
        "--shutdown-timeout",
        "30",
    )
    assert simulated.env["GPUWARD_SIM_CLAIMS"] == "/run/claims"


def test_an_executable_is_run_on_a_simulated_host_too() -> None:
    started = launched(a_vllm_pool(), host=SIMULATED)

    assert started.argv[0] == "/opt/vllm/bin/vllm"
    assert started.env["GPUWARD_SIM_GPUS"] == "g"


def test_the_simulated_engine_is_simulated_on_a_real_host_and_needs_no_model() -> None:
    started = launched(Pool(name="sim", engine="simulated"))

    assert started.argv[2:5] == ("gpuward.sim.vllm.worker", "serve", "simulated")
    assert "GPUWARD_SIM_CLAIMS" not in started.env


def test_a_command_has_its_placeholders_filled() -> None:
    pool = a_command_pool(
        "/bin/serve", "--port={port}", "{gpus}", "{worker}", "{index}", "{{literal}}", gpus_per_worker=2
    )

    started = launched(pool, TWO_GPUS, index=1)

    assert started.argv == ("/bin/serve", "--port=20064", "4,5", "aux/1", "1", "{literal}")


@pytest.mark.parametrize("word", ["{ports}", "{port.__class__}", "{", '{"a": 1}', "{}"])
def test_an_unknown_placeholder_is_refused(word: str) -> None:
    with pytest.raises(CannotLaunch, match=r"is not a placeholder; there are \{port\}"):
        launched(a_command_pool("/bin/serve", word), Devices())


def test_a_command_is_looked_up_in_the_path_of_its_pool(tmp_path: Path) -> None:
    (tmp_path / "serve").touch(mode=0o755)

    started = launched(a_command_pool("serve", env={"PATH": str(tmp_path)}), Devices())

    assert started.argv == (f"{tmp_path}/serve",)


def test_a_command_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotLaunch, match="no program 'serve' in PATH"):
        launched(a_command_pool("serve", env={"PATH": str(tmp_path)}), Devices())


def test_a_worker_without_gpus_sees_none() -> None:
    started = launched(a_command_pool("/bin/proxy"), Devices())

    assert started.env["CUDA_VISIBLE_DEVICES"] == "-1"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"ready_url": "http://127.0.0.1:{port}/ok"}, Readiness(url="http://127.0.0.1:20064/ok", port=20064)),
        ({"ready_url": "http://localhost/"}, Readiness(url="http://localhost/", port=80)),
        ({"ready_log": "serving on"}, Readiness(log_pattern="serving on")),
        ({"ready_after_s": 5.0}, Readiness(after_s=5.0)),
        ({"ready_after_s": 0.0}, Readiness(after_s=0.0)),
        ({}, Readiness(after_s=1.0)),
    ],
)
def test_a_command_is_ready_as_its_pool_says(settings: dict[str, object], expected: Readiness) -> None:
    assert launched(a_command_pool("/bin/proxy", **settings), Devices()).readiness == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ready_url": "ftp://127.0.0.1:{port}/"}, "is not http://HOST:PORT/PATH"),
        ({"ready_url": "http://127.0.0.1:{prot}/"}, "is not a placeholder"),
        ({"ready_log": "(open"}, r"missing \)|unterminated subpattern"),
    ],
)
def test_a_readiness_that_could_never_come_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(CannotLaunch, match=message):
        launched(a_command_pool("/bin/proxy", **settings), Devices())


def test_secrets_of_the_environment_are_not_shown() -> None:
    assert "HF_TOKEN" not in repr(launched(a_vllm_pool()))
    assert "HF_TOKEN" not in repr(REAL)
