"""vLLM: `vllm serve` with the pool's arguments, its own HTTP port and its own internal ports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gpuward.config.drain import SHUTDOWN_TIMEOUT, drain_s
from gpuward.config.fleet import Pool
from gpuward.config.pool_rules import FLAGS_WITH_KEYS
from gpuward.config.vllm_arguments import flag_of, option, options
from gpuward.engines import programs
from gpuward.engines.environment import prepend_path
from gpuward.engines.launch import CannotLaunch, HostContext, Version
from gpuward.host.address import Readiness

NIXL: Final = 1  # to NIXL + 7: vLLM adds the data parallel rank
EC: Final = 9
P2P: Final = 10
MOONCAKE: Final = 11
INTERNAL: Final = 12
"""Offsets in a worker's block of ports; 0 is HTTP. vLLM counts upward from INTERNAL for torch and its own sockets."""

PORTS_MIN: Final = INTERNAL + 4

SOCKETS: Final = "VLLM_RPC_BASE_PATH"
"""Where vLLM makes the sockets between its processes, in the directory for temporary files by default (vLLM 0.32
envs.py). One that is killed leaves them there for ever."""

QUIET_SINCE: Final[Version] = (0, 16, 0)
"""First version with ``--disable-access-log-for-endpoints`` (vllm-project/vllm #30011)."""

SHUTDOWN_TIMEOUT_SINCE: Final[Version] = (0, 18, 0)
"""First version with ``--shutdown-timeout``: running requests end after SIGTERM (without it they are aborted)."""

QUIET_ENDPOINTS: Final = "/health,/metrics,/ping"
"""What is asked by supervision alone; a line in the worker's log for each look would bury what the worker says."""


def serve_arguments(pool: Pool, port: int) -> tuple[str, ...]:
    """Return everything behind ``vllm``; CannotLaunch without a model, or with one of `FLAGS_WITH_KEYS` twice."""
    model = model_name(pool)
    for word in pool.extra_args:
        key = FLAGS_WITH_KEYS.get(flag_of(word))
        if key is not None:
            raise CannotLaunch(
                f"pool '{pool.name}' has {word!r} in extra-args; use the key '{key}', which gpuward reads"
            )
    pipeline = pool.pipeline_parallel_size or 1
    words = ["serve", model]
    if option(pool.extra_args, "--host") is None:
        words += ["--host", "127.0.0.1"]
    words += ["--port", str(port), "--tensor-parallel-size", str(pool.tensor_size)]
    if pipeline > 1:
        words += ["--pipeline-parallel-size", str(pipeline)]
    words += ["--gpu-memory-utilization", str(pool.gpu_memory_utilization)]
    if pool.max_model_len is not None:
        words += ["--max-model-len", str(pool.max_model_len)]
    return (*words, *pool.extra_args)


def quiet_arguments(pool: Pool, version: Version | None) -> tuple[str, ...]:
    """Return what keeps supervision out of the worker's log, where its version has it and the pool does not say."""
    flag = "--disable-access-log-for-endpoints"
    if version is None or version < QUIET_SINCE or flag in options(pool.extra_args):
        return ()
    return flag, QUIET_ENDPOINTS


def drain_arguments(pool: Pool, version: Version | None) -> tuple[str, ...]:
    """Return what lets running requests end after SIGTERM, where the version has it and the pool does not say.

    A version that is not known gets nothing: one that does not know the flag would not start at all.
    """
    if version is None or version < SHUTDOWN_TIMEOUT_SINCE or SHUTDOWN_TIMEOUT in options(pool.extra_args):
        return ()
    return SHUTDOWN_TIMEOUT, str(drain_s(pool))


def model_name(pool: Pool) -> str:
    """Return what to serve; CannotLaunch where the pool does not say. The simulated engine needs no model to serve."""
    if pool.model is not None:
        return pool.model
    if pool.engine == "simulated":
        return "simulated"
    raise CannotLaunch(f"pool '{pool.name}' has no model; set 'model' to a directory or a name")


def program(pool: Pool, host: HostContext, env: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the words that run ``vllm``, and ``env`` as they need it.

    ``executable`` is a ``vllm`` script, the ``python`` of a virtual environment or its directory. Without one, the
    ``vllm`` of PATH, then the one beside the daemon's own interpreter. CannotLaunch where none is there.
    """
    if pool.executable is None:
        beside = str(Path(host.python).parent / "vllm")
        found = programs.find("vllm", env) or (beside if programs.is_executable(beside) else None)
        if found is None:
            raise CannotLaunch(
                f"cannot start pool '{pool.name}': no 'vllm' in PATH nor beside {host.python}; set 'executable' to a "
                "vllm script, a python that has vLLM, or the directory of its virtual environment"
            )
        return (found,), dict(env)
    path = Path(pool.executable)
    if path.is_dir():
        path = path / "bin" / ("vllm" if (path / "bin" / "vllm").exists() else "python")
    located = programs.find(str(path), env)
    if located is None:
        raise CannotLaunch(f"cannot start pool '{pool.name}': no executable '{path}' in PATH; write its whole path")
    # vLLM starts compilers (ninja) by name: they lie beside its python
    with_tools = prepend_path(env, str(Path(located).parent))
    if path.name.startswith("python"):
        return (located, "-m", "vllm.entrypoints.cli.main"), with_tools
    return (located,), with_tools


def internal_ports(pool: Pool, ports: range) -> dict[str, str]:
    """Return the variables that keep this worker's sockets inside ``ports``; what the pool sets itself stays.

    ``VLLM_PORT`` is the first internal port, not the API port. The side channels have fixed default ports, the same
    for every worker of a host (vLLM 0.32 envs.py). CannotLaunch where the block is too small.
    """
    if len(ports) < PORTS_MIN:
        raise CannotLaunch(
            f"a vLLM worker needs {PORTS_MIN} ports, its block has {len(ports)}; raise 'per-worker' in [ports]"
        )
    names = {
        "VLLM_NIXL_SIDE_CHANNEL_PORT": NIXL,
        "VLLM_EC_SIDE_CHANNEL_PORT": EC,
        "VLLM_P2P_SIDE_CHANNEL_PORT": P2P,
        "VLLM_MOONCAKE_BOOTSTRAP_PORT": MOONCAKE,
        "VLLM_PORT": INTERNAL,
    }
    return {name: str(ports[offset]) for name, offset in names.items() if name not in pool.env}


def readiness(pool: Pool, port: int, env: Mapping[str, str]) -> Readiness:
    """Return how a vLLM server proves that it is ready: health, listener, model. ``env``: the worker's."""
    host = option(pool.extra_args, "--host") or "127.0.0.1"
    if host in {"0.0.0.0", "::", "localhost"}:
        host = "127.0.0.1"
    address = f"[{host}]" if ":" in host else host
    given = options(pool.extra_args)
    scheme = "https" if "--ssl-certfile" in given or "--ssl-keyfile" in given else "http"
    return Readiness(
        url=f"{scheme}://{address}:{port}/health",
        port=port,
        model=option(pool.extra_args, "--served-model-name") or model_name(pool),
        key=option(pool.extra_args, "--api-key") or env.get("VLLM_API_KEY", ""),
    )
