"""Which ports belong to which worker. Pure: who listens where is handed in.

Every worker has a block of consecutive ports for itself, also one whose pool names its HTTP port: engines open more
than one. A block stays with its worker as long as the worker is known, so that clients and runs that outlive the daemon
find what they knew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from gpuward.config.fleet import Pool, Remark
from gpuward.config.host import PortRange

PORT_MAX: Final = 65535


class PortsExhausted(Exception):
    """No block is left for a worker; the message has the numbers and the way out."""


def assign(
    workers: Iterable[str], settings: PortRange, current: Mapping[str, int], busy: Collection[int] = ()
) -> dict[str, int]:
    """Return the first port of each worker's block.

    ``current``: what was assigned before; it is kept where it still is a block of the range, for the worker itself may
    be what makes it busy. To move a worker, leave it out of ``current``. ``busy``: ports that no new block may hold,
    those of `explicit_ports` and of foreign listeners. Raises PortsExhausted.
    """
    names = list(workers)
    blocks = range(settings.first, settings.last - settings.per_worker + 2, settings.per_worker)
    assigned: dict[str, int] = {}
    taken: set[int] = set()
    for name in names:
        port = current.get(name)
        if port is not None and port in blocks and port not in taken:
            assigned[name] = port
            taken.add(port)
    occupied = {settings.first + (port - settings.first) // settings.per_worker * settings.per_worker for port in busy}
    free = (port for port in blocks if port not in taken and port not in occupied)
    for name in names:
        if name not in assigned:
            assigned[name] = next(free, 0)
            if not assigned[name]:
                raise PortsExhausted(_exhausted(names, blocks, occupied, settings))
    return {name: assigned[name] for name in names}


def explicit_ports(pools: Iterable[Pool]) -> dict[str, int]:
    """Return the port of every worker whose pool names one: ``pool.port`` + index."""
    return {
        name: pool.port + index
        for pool in pools
        if pool.port is not None
        for index, name in enumerate(pool.worker_names)
    }


def serves(pool: Pool) -> bool:
    """Whether workers of the pool listen on a port that they are given."""
    if pool.engine != "command" or pool.port is not None:
        return True
    return any("{port}" in word for word in (*pool.command, pool.ready_url or ""))


def served_port(pool: Pool, index: int, block: int) -> int | None:
    """The port that worker ``index`` serves on, ``block`` being the first of its own; None where it serves nothing."""
    if not serves(pool):
        return None
    return block if pool.port is None else pool.port + index


def problems(pools: Iterable[Pool], settings: PortRange) -> tuple[Remark, ...]:
    """Return what cannot work about the ports of a fleet: one port for two workers, a port that is none, too few."""
    fleet = tuple(pools)
    return (*_clashes(fleet), *_out_of_range(fleet), *_shortage(fleet, settings))


def _clashes(pools: tuple[Pool, ...]) -> Iterable[Remark]:
    holders: dict[int, str] = {}
    told: set[tuple[str, str]] = set()
    for name, port in explicit_ports(pools).items():
        holder = holders.setdefault(port, name)
        pool, other = name.rpartition("/")[0], holder.rpartition("/")[0]
        if holder != name and (pool, other) not in told:
            told.add((pool, other))
            yield Remark(
                code="port-conflict",
                pool=pool,
                message=f"port {port} would belong to {holder} and {name}: a pool takes 'port' and the next, one per "
                f"worker; move 'port' of '{pool}' or '{other}'",
            )


def _out_of_range(pools: tuple[Pool, ...]) -> Iterable[Remark]:
    for pool in pools:
        if pool.port is not None and pool.port + pool.workers - 1 > PORT_MAX:
            yield Remark(
                code="bad-value",
                pool=pool.name,
                message=f"pool '{pool.name}' would use ports {pool.port} to {pool.port + pool.workers - 1} for its "
                f"{pool.workers} workers; {PORT_MAX} is the last port there is",
            )


def _shortage(pools: tuple[Pool, ...], settings: PortRange) -> Iterable[Remark]:
    explicit = explicit_ports(pools).values()
    names = [name for pool in pools for name in pool.worker_names]
    try:
        assign(names, settings, {}, explicit)
    except PortsExhausted as error:
        yield Remark(code="too-few-ports", pool=None, message=str(error))


def _exhausted(names: Collection[str], blocks: range, occupied: Collection[int], settings: PortRange) -> str:
    busy = sum(port in blocks for port in occupied)
    return (
        f"cannot give ports to {len(names)} workers: {settings.first} to {settings.last} holds {len(blocks)} blocks of "
        f"{settings.per_worker}, {busy} of them busy; widen the range or lower 'per-worker' in [ports]"
    )
