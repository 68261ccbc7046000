"""The complete environment of a worker: what of the daemon's own it may see, its pool's, its GPUs, its name."""

from __future__ import annotations

from collections.abc import Mapping

from gpuward.config.fleet import Pool
from gpuward.engines.launch import CannotLaunch, Devices, HostContext

WITHHELD = frozenset(
    {
        "CUDA_DEVICE_ORDER",
        "CUDA_VISIBLE_DEVICES",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "NOTIFY_SOCKET",
        "NVIDIA_VISIBLE_DEVICES",
        "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH",
        "VLLM_PORT",
    }
)
"""Variables of the daemon's that no worker inherits.

With NOTIFY_SOCKET a worker could tell systemd that the daemon is ready. A Kubernetes service called "vllm" puts
``VLLM_PORT=tcp://...`` into every container of its namespace, and vLLM dies of it.
"""

WITHHELD_PREFIXES = ("GPUWARD_", "LISTEN_", "WATCHDOG_")
HANDED_ON_PREFIX = "GPUWARD_SIM_"
"""Settings of simulated workers are for every worker that the daemon starts, or for one pool in its ``env``."""

REFUSED = {
    "CUDA_VISIBLE_DEVICES": "gpuward sets it from the device set; use the keys 'gpus' or 'first-gpu'",
    "CUDA_DEVICE_ORDER": "gpuward sets it to PCI_BUS_ID, without which an index names another GPU",
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "a worker without its engine would never end, and so never be restarted",
}
"""Variables that a pool may not set, and why."""

NO_DEVICE = "-1"
"""CUDA takes the devices before the first index that is not there (CUDA C++ Programming Guide, "CUDA Environment
Variables"), so this is no device. The variable must not be absent (every GPU would be visible), and not be empty:
CUDA reads that as no device but vLLM as unset."""


def environment(pool: Pool, worker: str, devices: Devices, host: HostContext) -> dict[str, str]:
    """Return the environment that every engine starts from; CannotLaunch where the pool sets what it must not.

    ``SPT_NOENV``: vLLM's engine and worker processes set their titles with setproctitle, which writes over the initial
    environment unless this is set (measured with 1.3.8); /proc/PID/environ is where the rest of a run is found.
    """
    for key, why in REFUSED.items():
        if key in pool.env:
            raise CannotLaunch(f"pool '{pool.name}' sets {key} in 'env': {why}")
    inherited = {key: value for key, value in host.inherited_env.items() if not _withheld(key)}
    return {
        "PYTHONUNBUFFERED": "1",
        **inherited,
        **pool.env,
        "SPT_NOENV": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": visible_devices(pool, devices) or NO_DEVICE,
        "GPUWARD_WORKER": worker,
        **(host.sim_env if host.simulated else {}),
    }


def visible_devices(pool: Pool, devices: Devices) -> str:
    """Return the device set as CUDA takes it: ``0,1`` or ``GPU-...,GPU-...``; empty for a worker without GPUs."""
    return ",".join(devices.uuids if pool.pin == "uuid" else (str(index) for index in devices.indices))


def check_devices(pool: Pool, worker: str, devices: Devices) -> None:
    """Raise CannotLaunch unless the device set has the size that the pool asks for: never unpinned, never half."""
    have, need = len(devices.indices), pool.device_count
    if have != need:
        raise CannotLaunch(f"cannot start {worker}: it needs {need} GPUs and its device set has {have}; plan it again")
    if have != len(devices.uuids) or len(set(devices.indices)) != have:
        raise CannotLaunch(
            f"cannot start {worker}: its device set is broken, indices {devices.indices} for UUIDs {devices.uuids}; "
            "plan it again"
        )


def prepend_path(env: Mapping[str, str], directory: str) -> dict[str, str]:
    """Return ``env`` with ``directory`` searched first, as an activated virtual environment has it."""
    return {**env, "PATH": f"{directory}:{env['PATH']}" if env.get("PATH") else directory}


def _withheld(key: str) -> bool:
    return key in WITHHELD or (key.startswith(WITHHELD_PREFIXES) and not key.startswith(HANDED_ON_PREFIX))
