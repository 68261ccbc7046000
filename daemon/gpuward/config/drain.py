"""How long a worker has to finish its requests, and to end, when it is asked to stop. Pure; in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gpuward.config.decode import Section
from gpuward.config.fleet import Pool, Remark
from gpuward.config.vllm_arguments import option

SHUTDOWN_TIMEOUT: Final = "--shutdown-timeout"

DRAIN_DEFAULT_S: Final = 30

AFTER_DRAIN_S: Final = 10
"""What a vLLM needs from the end of its drain to its exit at most; SIGKILL comes no earlier by default."""


def drain_s(pool: Pool) -> int:
    """For how long the engine may finish what it has begun: extra-args, the key, or the default.

    A pool that names only `stop-timeout-s` gets the default as far as that leaves time to end: at least half of it.
    """
    stated = option(pool.extra_args, SHUTDOWN_TIMEOUT) if pool.engine != "command" else None
    if stated is not None and stated.isdigit():
        return int(stated)
    if pool.drain_timeout_s is not None:
        return pool.drain_timeout_s
    if pool.stop_timeout_s is None:
        return DRAIN_DEFAULT_S
    return min(DRAIN_DEFAULT_S, int(max(pool.stop_timeout_s - AFTER_DRAIN_S, pool.stop_timeout_s / 2)))


def grace_s(pool: Pool) -> float:
    """From SIGTERM to SIGKILL: what the pool says, else the drain and time to end; a command gets the drain alone."""
    if pool.stop_timeout_s is not None:
        return pool.stop_timeout_s
    return float(drain_s(pool) + (AFTER_DRAIN_S if pool.engine != "command" else 0))


def drain_problems(pool: Pool, section: Section) -> Iterator[Remark]:
    """A drain in the middle of which SIGKILL would come, and one that is given twice."""
    words = option(pool.extra_args, SHUTDOWN_TIMEOUT) if pool.engine != "command" else None
    if words is not None and pool.drain_timeout_s is not None:
        yield section.bad_value(
            "extra-args",
            [SHUTDOWN_TIMEOUT, words],
            "drain-timeout-s is given too and says the same; keep one of the two",
        )
    elif words is not None and not words.isdigit():
        yield section.bad_value("extra-args", [SHUTDOWN_TIMEOUT, words], "must be whole seconds, 0 or more")
    if pool.stop_timeout_s is not None and drain_s(pool) >= pool.stop_timeout_s:
        key = SHUTDOWN_TIMEOUT if words is not None else "drain-timeout-s"
        yield section.bad_value(
            "stop-timeout-s",
            pool.stop_timeout_s,
            f"SIGKILL would come in the middle of the drain ({key} = {drain_s(pool)}); write at least "
            f"{drain_s(pool) + AFTER_DRAIN_S}, or leave the key out",
        )
