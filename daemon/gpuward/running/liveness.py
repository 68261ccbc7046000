"""Looks at one ready run again and again, until it hangs. What a look means is `policy.liveness`."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from gpuward.config.fleet import Pool
from gpuward.engines.launch import Address, Readiness, address
from gpuward.host.http import BadAnswer, get, post
from gpuward.policy.liveness import Look, Pulse, after_look, idle, watched

OFF_PAUSE_S: Final = 10.0
"""While looks are switched off: how often it is asked whether they still are."""

SERVER_ERRORS: Final = frozenset({500, 503})
"""Answers of an API server whose engine is dead; any other answer to a canary came from one that works."""

PROGRESS: Final = re.compile(
    rb"^vllm:(?:iteration_tokens_total_count|generation_tokens_total)(?:\{.*\})? ([0-9.e+]+)",
    re.MULTILINE,
)
REQUESTS: Final = re.compile(rb"^vllm:num_requests_(?:running|waiting)(?:\{.*\})? ([0-9.e+]+)", re.MULTILINE)
"""Names of vLLM 0.32.0; summed over the engines of one server."""

NUMBER_CHARS_MAX: Final = 32
COUNT_MAX: Final = 1e18


async def until_hung(readiness: Readiness, pool: Callable[[], Pool | None]) -> str:
    """Return how it hangs, as soon as it does. ``pool`` tells the terms, each time anew."""
    assert readiness.url is not None
    target = address(readiness.url)
    pulse = Pulse()
    while True:
        now = pool()
        if now is None or not watched(now):
            pulse = Pulse()
            await asyncio.sleep(OFF_PAUSE_S)
            continue
        terms = now.liveness
        began_s = time.monotonic()
        model = readiness.model if terms.canary else None
        pulse, hung = after_look(pulse, await _look(target, model, pulse, terms.interval_s), terms)
        if hung:
            return hung
        await asyncio.sleep(max(0.0, began_s + terms.interval_s - time.monotonic()))


async def _look(target: Address, model: str | None, pulse: Pulse, limit_s: float) -> Look:
    """Counters first; an engine that seems idle is asked for a token, and its counters once more if none came."""
    look = await _counters(target, limit_s)
    if model is None or not idle(pulse, look):
        return look
    look = await _canary(target, model, look, limit_s)
    if look.canary != "overdue":
        return look
    again = await _counters(target, limit_s)
    return replace(look, progress=again.progress, requests=again.requests)


async def _counters(target: Address, limit_s: float) -> Look:
    try:
        answer = await get(replace(target, path="/metrics"), limit_s)
    except (OSError, TimeoutError, BadAnswer) as error:
        return Look(progress=None, said=str(error) or f"no answer within {limit_s:g} s")
    return counters_of(answer.body)


def counters_of(body: bytes) -> Look:
    """What a body of ``/metrics`` tells; no progress where it is not told, or not in numbers."""
    try:
        counts = [_number(match) for match in PROGRESS.findall(body)]
        requests = sum(int(_number(match)) for match in REQUESTS.findall(body))
    except ValueError as error:
        return Look(progress=None, said=str(error))
    return Look(progress=sum(counts) if counts else None, requests=requests)


def _number(text: bytes) -> float:
    """A counter's value; ValueError where it is none, or none that counts anything."""
    value = float(text) if len(text) <= NUMBER_CHARS_MAX else math.nan
    if not 0 <= value <= COUNT_MAX:
        raise ValueError(f"a counter of {text[:NUMBER_CHARS_MAX].decode('ascii', 'replace')}")
    return value


async def _canary(target: Address, model: str, look: Look, limit_s: float) -> Look:
    body = json.dumps({"model": model, "prompt": "1", "max_tokens": 1}).encode()
    try:
        answer = await post(replace(target, path="/v1/completions"), body, limit_s)
    except (OSError, TimeoutError, BadAnswer) as error:
        return replace(look, canary="overdue", said=str(error) or f"not within {limit_s:g} s")
    if answer.status in SERVER_ERRORS:
        return replace(look, canary="overdue", said=f"status {answer.status}")
    return replace(look, canary="came")
