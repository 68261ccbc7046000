"""What a worker sees of the daemon's environment."""

from __future__ import annotations

import pytest

from gpuward.config.fleet import Pool
from gpuward.engines.environment import environment
from gpuward.engines.launch import CannotLaunch, Devices, HostContext

ONE_GPU = Devices(indices=(0,), uuids=("GPU-0",))


def of(inherited: dict[str, str], pool_env: dict[str, str] | None = None, **sim: str) -> dict[str, str]:
    host = HostContext(python="/p", simulated=bool(sim), inherited_env=inherited, sim_env=sim)
    return environment(Pool(name="p", env=pool_env or {}), "p/0", ONE_GPU, host)


@pytest.mark.parametrize(
    "key",
    [
        "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "JOURNAL_STREAM", "INVOCATION_ID",
        "NVIDIA_VISIBLE_DEVICES", "VLLM_PORT", "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "GPUWARD_SOCKET",
    ],
)  # fmt: skip
def test_what_belongs_to_the_daemon_alone_is_withheld(key: str) -> None:
    assert key not in of({key: "x"})


def test_the_daemons_own_pinning_never_reaches_a_worker() -> None:
    env = of({"CUDA_VISIBLE_DEVICES": "7", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"})

    assert (env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"]) == ("0", "PCI_BUS_ID")


def test_the_rest_is_inherited_and_the_pool_overrides_it() -> None:
    env = of({"HOME": "/home/op", "HF_HOME": "/old"}, {"HF_HOME": "/new"})

    assert (env["HOME"], env["HF_HOME"]) == ("/home/op", "/new")


def test_output_is_unbuffered_unless_the_pool_wants_otherwise() -> None:
    assert of({})["PYTHONUNBUFFERED"] == "1"
    assert of({}, {"PYTHONUNBUFFERED": "0"})["PYTHONUNBUFFERED"] == "0"


def test_process_titles_leave_the_marker_readable() -> None:
    assert of({"SPT_NOENV": ""})["SPT_NOENV"] == "1"


def test_a_simulated_host_says_where_its_gpus_are() -> None:
    assert of({"GPUWARD_SIM_CLAIMS": "/stale"}, GPUWARD_SIM_CLAIMS="/here")["GPUWARD_SIM_CLAIMS"] == "/here"


@pytest.mark.parametrize("key", ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH"])
def test_a_pool_may_not_set_what_pinning_and_watching_rest_on(key: str) -> None:
    with pytest.raises(CannotLaunch, match=f"pool 'p' sets {key} in 'env'"):
        of({}, {key: "1"})
