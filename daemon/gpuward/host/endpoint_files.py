"""Files that list workers for proxies: JSON, nginx upstreams, Prometheus' file_sd. Written whole; decides nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gpuward.host.files import RECORD_MAX_BYTES, read_regular, write_whole

MARK: Final = "# Written by gpuward; changes are lost."
NGINX: Final = ".nginx.conf"

NOBODY: Final = "server 127.0.0.1:9 down;  # no worker is ready"
"""An upstream without a server is an error in nginx; with one that is down it answers 502."""

READABLE: Final = 0o644
"""Proxies run as users of their own; there is no secret in these files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One ready worker; ``url`` without a path, ``since`` in RFC 3339."""

    worker: str
    url: str
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEndpoints:
    """The ready workers of one pool; ``model`` is None where it has none."""

    pool: str
    model: str | None
    endpoints: tuple[Endpoint, ...] = ()


def write_endpoints(directory: Path, pools: Sequence[PoolEndpoints]) -> bool:
    """Bring the files in line; whether any has changed. A pool that is gone keeps files that list nobody."""
    directory.mkdir(parents=True, exist_ok=True)
    known = {pool.pool for pool in pools}
    gone = [name for name in _written_before(directory) if name not in known]
    everybody = [*pools, *(PoolEndpoints(pool=name, model=None) for name in gone)]
    files: dict[str, str] = {"prometheus.json": _prometheus(pools)}
    for pool in everybody:
        files[f"{pool.pool}.json"] = _document(pool)
        files[f"{pool.pool}{NGINX}"] = nginx_upstream(pool)
    changed = [_write(directory / name, text) for name, text in files.items()]
    return any(changed)


def nginx_upstream(pool: PoolEndpoints) -> str:
    """The upstream of a pool; nginx takes addresses without a scheme (ngx_http_upstream_module)."""
    servers = [f"server {_address(one.url)};  # {one.worker}" for one in pool.endpoints] or [NOBODY]
    return "\n".join([MARK, f"upstream {pool.pool} {{", *(f"    {server}" for server in servers), "}", ""])


def _address(url: str) -> str:
    return url.partition("://")[2] if not url.startswith("unix:") else url


def _document(pool: PoolEndpoints) -> str:
    endpoints = [{"worker": one.worker, "url": one.url, "since": one.since} for one in pool.endpoints]
    return _json({"schema_version": 1, "pool": pool.pool, "model": pool.model, "endpoints": endpoints})


def _prometheus(pools: Sequence[PoolEndpoints]) -> str:
    """file_sd of Prometheus: ``__scheme__`` is how a target is asked."""
    return _json(
        [
            {
                "targets": [_address(one.url)],
                "labels": {"pool": pool.pool, "worker": one.worker, "__scheme__": one.url.partition("://")[0]},
            }
            for pool in pools
            for one in pool.endpoints
            if not one.url.startswith("unix:")
        ]
    )


def _json(document: Mapping[str, object] | Sequence[object]) -> str:
    return json.dumps(document, indent=1) + "\n"


def _written_before(directory: Path) -> list[str]:
    """Pools whose upstream lies there, by our mark in its first line."""
    return sorted(
        path.name.removesuffix(NGINX)
        for path in directory.glob(f"*{NGINX}")
        if not path.name.startswith(".") and _content(path).startswith(MARK.encode())
    )


def _content(path: Path) -> bytes:
    try:
        return read_regular(path, RECORD_MAX_BYTES)
    except OSError:
        return b""


def _write(path: Path, text: str) -> bool:
    if _content(path) == text.encode():
        return False
    write_whole(path, text.encode(), durable=False)
    path.chmod(READABLE)
    return True
