"""Watches one run until it has proved that it is ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, closing
from pathlib import Path

from gpuward.host.address import Readiness, address_of
from gpuward.host.log_reader import LogWatch
from gpuward.host.probe import ProbeResult, check
from gpuward.supervisor.canary import Canary

PAUSE_FIRST_S = 0.1
PAUSE_MAX_S = 1.0
TIMEOUT_S = 5.0
"""A loading vLLM refuses connections; one that accepts and is slow gets this long (vllm.md, section 8)."""

FIRST_ANSWER_S = 60.0
"""How long a worker may take for its first request; it may compile for it. One that takes longer is asked again."""


async def until_ready(
    readiness: Readiness,
    *,
    log: Path,
    started_s: float,
    tree: Callable[[], Collection[int]],
    missed: Callable[[str], None],
    asks: Callable[[], bool] = lambda: False,
    output_trouble: Callable[[], str] = lambda: "",
) -> None:
    """Return when the run is ready; ``missed`` is told each time what is still missing. Asks ever more slowly.

    ``asks``: whether a worker that serves a model is ready only when it has answered a request. ``output_trouble``:
    why its output is lost, empty where it is not.
    """
    if readiness.after_s is not None:
        missed(f"counts as ready {readiness.after_s:g} s after its start")
        await asyncio.sleep(max(0.0, started_s + readiness.after_s - time.monotonic()))
        return
    with ExitStack() as opened:
        watch = None
        if readiness.log_pattern is not None:
            watch = opened.enter_context(closing(LogWatch(log, readiness.log_pattern)))
        pause_s = PAUSE_FIRST_S
        while True:
            if watch is not None:
                found = await asyncio.to_thread(watch.found)
                ready, reason = found, _awaited_line(readiness.log_pattern or "", output_trouble())
            else:
                result = await check(readiness, tree, TIMEOUT_S)
                if result.ready and readiness.model is not None and asks():
                    missed("serves its model; waits for the answer to its first request")
                    result = await _first_answer(readiness, readiness.model)
                ready, reason = result.ready, result.reason
            if ready:
                return
            missed(reason)
            await asyncio.sleep(pause_s)
            pause_s = min(PAUSE_MAX_S, pause_s * 1.3)


def _awaited_line(pattern: str, trouble: str) -> str:
    reason = f"waits for a line of output that matches {pattern!r}"
    return f"{reason}, but its output is being lost ({trouble}): that line may be, too" if trouble else reason


async def _first_answer(readiness: Readiness, model: str) -> ProbeResult:
    """Ready is who has answered one request, or cannot be asked: an engine that dies of its first one never was."""
    heard = await Canary(address_of(readiness), model).ask(FIRST_ANSWER_S)
    ready = heard.canary in {"came", "refused"}
    return ProbeResult(ready, "" if ready else f"serves its model and has not answered its first request: {heard.said}")
