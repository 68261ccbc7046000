"""Looks at one ready run again and again, until it hangs. What a look means is `policy.worker.liveness`."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from gpuward.config.fleet import Liveness, Pool
from gpuward.host.address import Address, Readiness, address_of
from gpuward.host.http import BadAnswer, get
from gpuward.policy.worker.liveness import Count, Look, Pulse, Report, after_look, doubtful, wants_canary, watched
from gpuward.supervisor.canary import Canary

OFF_PAUSE_S: Final = 10.0
"""While looks are switched off: how often it is asked whether they still are."""

LIMIT_RATIO: Final = 0.8
"""How much of an interval a look waits for counters: a server that is silent from one look on is found in time."""

PROGRESS: Final = re.compile(
    rb"^vllm:(?:iteration_tokens_total_count|generation_tokens_total)(?:\{(.*)\})? ([0-9.e+]+)",
    re.MULTILINE,
)
REQUESTS: Final = re.compile(rb"^vllm:num_requests_(?:running|waiting)(?:\{(.*)\})? ([0-9.e+]+)", re.MULTILINE)
SLEEP: Final = re.compile(rb'^vllm:engine_sleep_state\{.*sleep_state="([a-z_]+)".*\} 1(?:\.0)?$', re.MULTILINE)
ENGINE: Final = re.compile(rb'engine="([^"]{0,32})"')
"""Names of vLLM 0.32.0."""

NUMBER_CHARS_MAX: Final = 32
COUNT_MAX: Final = 1e18
ENGINES_MAX: Final = 1024
SLEEP_ANSWER_S: Final = 2.0
"""At least so long a server that is in doubt has to say whether it sleeps, however often it is looked at."""

SLEEPING: Final = re.compile(rb'"is_(?:sleeping|paused)" ?: ?true')


async def until_hung(readiness: Readiness, pool: Callable[[], Pool | None], told: Callable[[Report], None]) -> str:
    """Return how it hangs, as soon as it does. ``pool`` tells the terms, each time anew; ``told`` how it is watched."""
    target = address_of(readiness)
    canary = Canary(target, readiness.model) if readiness.model is not None else None
    pulse = Pulse()
    while True:
        now = pool()
        if now is None or not watched(now):
            pulse = Pulse()
            told(Report("off", "liveness.probe does not ask this pool"))
            await asyncio.sleep(OFF_PAUSE_S)
            continue
        terms = now.liveness
        began_s = time.monotonic()
        verdict = after_look(pulse, await _look(target, canary, pulse, terms), terms)
        told(verdict.report)
        if verdict.hung:
            return verdict.hung
        pulse = verdict.pulse
        await asyncio.sleep(max(0.0, began_s + terms.interval_s - time.monotonic()))


async def _look(target: Address, canary: Canary | None, pulse: Pulse, terms: Liveness) -> Look:
    """Counters first; an engine that seems idle is asked for a token, and its counters once more if none came."""
    limit_s = terms.interval_s * LIMIT_RATIO
    patient_s = max(limit_s, SLEEP_ANSWER_S)
    look = await _counters(target, limit_s)
    if pulse.asleep and look.answered and await _sleeps(target, patient_s):
        return replace(look, asleep=True)
    if canary is not None and wants_canary(pulse, look, terms):
        heard = await canary.ask(terms.interval_s, len(look.engines))
        if heard.canary == "overdue":
            again = await _counters(target, limit_s)
            look = again if again.engines or not again.answered else look
        look = replace(look, canary=heard.canary, said=heard.said or look.said) if look.answered else look
    if doubtful(pulse, look) and await _sleeps(target, patient_s):
        return replace(look, asleep=True)
    return look


async def _counters(target: Address, limit_s: float) -> Look:
    try:
        answer = await get(replace(target, path="/metrics"), limit_s)
    except (OSError, TimeoutError, BadAnswer) as error:
        return Look(answered=False, said=str(error) or f"no answer within {limit_s:g} s")
    return counters_of(answer.body)


async def _sleeps(target: Address, limit_s: float) -> bool:
    """Whether the server says so; it has these paths with VLLM_SERVER_DEV_MODE only, as those that put it to sleep."""
    for path in ("/is_sleeping", "/is_paused"):
        try:
            answer = await get(replace(target, path=path), limit_s)
        except (OSError, TimeoutError, BadAnswer):
            return False
        if answer.status == 200 and SLEEPING.search(answer.body[:4096]):
            return True
    return False


def counters_of(body: bytes) -> Look:
    """What a body of ``/metrics`` tells by engine; no engine where it is not told, or not in numbers."""
    try:
        progress, requests = _by_engine(PROGRESS, body), _by_engine(REQUESTS, body)
    except ValueError as error:
        return Look(answered=True, said=str(error))
    engines = {label: Count(done, int(requests.get(label, 0))) for label, done in progress.items()}
    sleep = set(SLEEP.findall(body))
    return Look(answered=True, engines=engines, asleep=bool(sleep) and b"awake" not in sleep)


def _by_engine(pattern: re.Pattern[bytes], body: bytes) -> Mapping[str, float]:
    sums: dict[str, float] = {}
    for labels, number in pattern.findall(body):
        engine = ENGINE.search(labels)
        label = engine[1].decode("ascii", "replace") if engine else "0"
        if label in sums or len(sums) < ENGINES_MAX:
            sums[label] = sums.get(label, 0.0) + _number(number)
    return sums


def _number(text: bytes) -> float:
    """A counter's value; ValueError where it is none, or none that counts anything."""
    value = float(text) if len(text) <= NUMBER_CHARS_MAX else math.nan
    if not 0 <= value <= COUNT_MAX:
        raise ValueError(f"a counter of {text[:NUMBER_CHARS_MAX].decode('ascii', 'replace')}")
    return value
