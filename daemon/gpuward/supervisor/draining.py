"""Asks a worker that was sent SIGTERM how many requests it still works on, until it answers no more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from gpuward.host.address import Readiness, address_of
from gpuward.host.http import BadAnswer, get
from gpuward.supervisor.liveness import counters_of

EVERY_S: Final = 0.5
WITHIN_S: Final = 2.0


async def until_drained(readiness: Readiness, told: Callable[[int], None]) -> None:
    """Tell the number whenever it is another; return when the worker does not answer, or tells no number."""
    target = replace(address_of(readiness), path="/metrics")
    last = 0
    while True:
        try:
            look = counters_of((await get(target, WITHIN_S)).body)
        except (OSError, TimeoutError, BadAnswer):
            return
        if not look.engines:
            return
        count = sum(engine.requests for engine in look.engines.values())
        if count != last:
            last = count
            told(count)
        await asyncio.sleep(EVERY_S)
