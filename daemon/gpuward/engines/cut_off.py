"""Pools that state a drain of which their engine cannot be told: what runs there when it stops is cut off.

Reads which version an executable is (`versions`), starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gpuward.config.drain import SHUTDOWN_TIMEOUT
from gpuward.config.fleet import Pool, Remark
from gpuward.engines.build import is_simulated
from gpuward.engines.environment import environment
from gpuward.engines.launch import CannotLaunch, Devices, HostContext, Version
from gpuward.engines.versions import version_of
from gpuward.engines.vllm import SHUTDOWN_TIMEOUT_SINCE

CODE = "drain-not-passed"


def cut_off(pools: Iterable[Pool], host: HostContext) -> Iterator[Remark]:
    """A warning for each pool with `drain-timeout-s` whose vLLM has no such flag, or is of no version that is known."""
    for pool in pools:
        if pool.drain_timeout_s and pool.engine == "vllm" and not is_simulated(pool, host):
            try:
                env = environment(pool, pool.name, Devices(), host)
            except CannotLaunch:
                continue
            version = version_of(pool, host, env)
            if version is None or version < SHUTDOWN_TIMEOUT_SINCE:
                yield Remark(code=CODE, pool=pool.name, message=_told(pool, version))


def _told(pool: Pool, version: Version | None) -> str:
    states = (
        f"pool '{pool.name}': drain-timeout-s = {pool.drain_timeout_s} does not reach vLLM, requests are cut on stop"
    )
    if version is None:
        return (
            f"{states}: no {SHUTDOWN_TIMEOUT} is passed, the version of {pool.executable or 'vllm'} is unknown; "
            f'if it is {_dotted(SHUTDOWN_TIMEOUT_SINCE)} or later, put "{SHUTDOWN_TIMEOUT}", "{pool.drain_timeout_s}" '
            "into extra-args instead of the key"
        )
    return (
        f"{states}: {pool.executable or 'vllm'} is {_dotted(version)}, {SHUTDOWN_TIMEOUT} came with "
        f"{_dotted(SHUTDOWN_TIMEOUT_SINCE)}; install that or a later one"
    )


def _dotted(version: Version) -> str:
    return ".".join(str(part) for part in version)
