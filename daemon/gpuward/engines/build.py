"""A worker and its device set in, everything that a start needs out. Starts nothing."""

from __future__ import annotations

from gpuward.config.fleet import Pool
from gpuward.engines import command, versions, vllm
from gpuward.engines.environment import check_devices, environment, visible_devices
from gpuward.engines.launch import Devices, HostContext, Launch, Version

SIMULATED_WORKER = "gpuward.sim.vllm.worker"


def launch(pool: Pool, worker: str, index: int, devices: Devices, ports: range, host: HostContext) -> Launch:
    """Return how to start worker ``index`` of ``pool``, called ``worker``, on ``devices``.

    ``ports`` is the block that this worker has for itself. Its own port is ``pool.port + index`` where the pool names
    a port, else the first of the block. The pool's ``env`` overrides engine defaults, never the pinning.
    Raises CannotLaunch with the way out.
    """
    check_devices(pool, worker, devices)
    env = environment(pool, worker, devices, host)
    port = http_port(pool, index, ports)
    sockets = ""
    if pool.engine == "command":
        values = {"port": str(port), "gpus": visible_devices(pool, devices), "worker": worker, "index": str(index)}
        argv, readiness = command.words(pool, env, values), command.readiness(pool, values)
    else:
        argv, env = _vllm(pool, env, port, host)
        env = {"VLLM_HOST_IP": "127.0.0.1", **env, **vllm.internal_ports(pool, ports)}
        readiness = vllm.readiness(pool, port, env)
        sockets = "" if vllm.SOCKETS in pool.env else vllm.SOCKETS
    return Launch(
        argv=argv,
        env=env,
        working_directory=pool.working_directory,
        port=port,
        readiness=readiness,
        sockets_variable=sockets,
    )


def is_simulated(pool: Pool, host: HostContext) -> bool:
    """Whether the simulated worker stands in.

    Always for engine simulated; for vllm on a simulated host, unless the pool names its executable.
    """
    return pool.engine == "simulated" or (pool.engine == "vllm" and host.simulated and pool.executable is None)


def http_port(pool: Pool, index: int, ports: range) -> int:
    """Return the port that worker ``index`` of ``pool`` serves on."""
    return ports[0] if pool.port is None else pool.port + index


def _vllm(pool: Pool, env: dict[str, str], port: int, host: HostContext) -> tuple[tuple[str, ...], dict[str, str]]:
    arguments = vllm.serve_arguments(pool, port)
    if is_simulated(pool, host):
        more = _by_version(pool, versions.SIMULATED)
        return (host.python, "-m", SIMULATED_WORKER, *arguments, *more), env
    words, env = vllm.program(pool, host, env)
    return (*words, *arguments, *_by_version(pool, versions.installed(words[0]))), env


def _by_version(pool: Pool, version: Version | None) -> tuple[str, ...]:
    return *vllm.quiet_arguments(pool, version), *vllm.drain_arguments(pool, version)
