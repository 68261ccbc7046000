"""Whether a record of the right types can be true. Pure.

A file that somebody has edited, or a bad disk has changed, may decode and still end every daemon that believes it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from gpuward.config.fleet import Fleet
from gpuward.config.pool_rules import POOL_NAME, WORKERS_MAX

TIME_LEAST_S = -1e9
TIME_MOST_S = 253_402_300_799.0
"""The end of the year 9999, the last that Python can print; no time and no duration of a record is beyond."""

NUMBER_MOST = 2**63 - 1


def worker_named(pool: str, index: str) -> str | None:
    """Return the worker that a file or directory ``pool``/``index`` is of; None where no worker can be called so."""
    if not POOL_NAME.fullmatch(pool) or not (index.isascii() and index.isdecimal()) or str(int(index)) != index:
        return None
    return f"{pool}/{index}" if int(index) < WORKERS_MAX else None


def absurd_number(record: object) -> str:
    """Name the first number that no record can hold; empty where there is none."""
    for path, value in _leaves("", msgspec.to_builtins(record)):
        if isinstance(value, float) and not (math.isfinite(value) and TIME_LEAST_S <= value <= TIME_MOST_S):
            return f"{path} = {value:g} cannot be"
        if isinstance(value, int) and abs(value) > NUMBER_MOST:
            return f"{path} is a number of {value.bit_length()} bits"
    return ""


def absurd_fleet(fleet: Fleet) -> str:
    """Say what of a fleet no decoder would have let pass; empty where there is nothing."""
    for pool in fleet.pools:
        if not POOL_NAME.fullmatch(pool.name):
            return f"a pool cannot be called {pool.name!r}"
        if not 0 <= pool.workers <= WORKERS_MAX:
            return f"pool {pool.name} cannot have {pool.workers} workers"
    name, count = next(iter(Counter(pool.name for pool in fleet.pools).most_common(1)), ("", 0))
    return f"{count} pools are called {name}" if count > 1 else ""


def _leaves(path: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{path}.{key}" if path else str(key), item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _leaves(path, item)
    else:
        yield path, value
