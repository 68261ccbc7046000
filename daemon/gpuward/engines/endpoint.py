"""Where clients find a worker, from its pool and its port. Asks nobody."""

from __future__ import annotations

from typing import Final

from gpuward.config.fleet import Pool
from gpuward.engines import command, vllm
from gpuward.engines.launch import CannotLaunch

SCHEMES: Final = ("http://", "https://")


def base_url(pool: Pool, index: int, port: int | None) -> str | None:
    """The URL of a worker without a path; None for a command that is not known to serve."""
    if port is None:
        return None
    values = {"port": str(port), "gpus": "", "worker": f"{pool.name}/{index}", "index": str(index)}
    try:
        if pool.engine != "command":
            return _base(vllm.readiness(pool, port, {}).url)
        if pool.ready_url is not None:
            return _base(command.fill(pool.ready_url, values))
    except CannotLaunch:  # what stands in for a pool that has left the fleet may have no model
        return None
    return f"http://127.0.0.1:{port}" if any("{port}" in word for word in pool.command) else None


def _base(url: str | None) -> str | None:
    if url is None or not url.startswith(SCHEMES):
        return url
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"
