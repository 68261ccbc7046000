"""Coming back smaller: after a run that ended for want of GPU memory, one setting at a time is lowered. Pure.

The steps belong to the worker; the pool that it is started with is its pool of the fleet with the steps on top.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from msgspec import structs

from gpuward.config.fleet import Pool
from gpuward.policy.worker.life import LadderStep, RunEnded

UTILIZATION_STEP: Final = 0.03
UTILIZATION_MIN: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Rung:
    """A number that vLLM takes: ``usual`` where the pool does not say, halved down to ``least``."""

    key: Literal["max-num-seqs", "max-num-batched-tokens"]
    usual: int
    least: int


RUNGS: Final = (_Rung("max-num-seqs", 256, 16), _Rung("max-num-batched-tokens", 8192, 2048))
"""vLLM 0.32 (engine/arg_utils.py) takes 256 requests and, on large GPUs, 8192 tokens per step."""


def next_step(pool: Pool, ended: RunEnded) -> LadderStep | None:
    """Return what is lowered next; None where the cause is none of memory, or nothing is left. ``pool``: as it ran."""
    if pool.on_oom != "adapt" or pool.engine == "command":
        return None
    if ended.exit.cause == "kv-cache-too-small":
        return _shorter(pool, ended.offer_tokens)
    if ended.exit.cause in {"gpu-oom-startup", "gpu-oom-runtime"}:
        return _smaller(pool)
    return None


def effective(pool: Pool, steps: Iterable[LadderStep]) -> Pool:
    """Return the pool with the steps on top of it."""
    for step in steps:
        match step.key:
            case "gpu-memory-utilization":
                pool = structs.replace(pool, gpu_memory_utilization=step.value)
            case "max-model-len":
                pool = structs.replace(pool, max_model_len=int(step.value))
            case "enforce-eager":
                pool = structs.replace(pool, extra_args=(*pool.extra_args, "--enforce-eager"))
            case _:
                words = (*_without(pool.extra_args, f"--{step.key}"), f"--{step.key}", f"{step.value:.12g}")
                pool = structs.replace(pool, extra_args=words)
    return pool


def said(step: LadderStep) -> str:
    """A step for a sentence."""
    if step.key == "enforce-eager":
        return "enforce-eager"
    before = f"{step.before:.12g}" if step.before else "the model's"
    return f"{step.key} {before} -> {step.value:.12g}"


def _shorter(pool: Pool, offer_tokens: int | None) -> LadderStep | None:
    """The length that vLLM's message names, where the pool allows it."""
    if offer_tokens is None or pool.min_max_model_len is None or offer_tokens < pool.min_max_model_len:
        return None
    if pool.max_model_len is not None and offer_tokens >= pool.max_model_len:
        return None
    return LadderStep(key="max-model-len", before=float(pool.max_model_len or 0), value=float(offer_tokens))


def _smaller(pool: Pool) -> LadderStep | None:
    ratio = pool.gpu_memory_utilization
    if ratio > UTILIZATION_MIN:
        lower = max(UTILIZATION_MIN, round(ratio - UTILIZATION_STEP, 4))
        return LadderStep(key="gpu-memory-utilization", before=ratio, value=lower)
    for rung in RUNGS:
        now = _stated(pool.extra_args, f"--{rung.key}") or rung.usual
        if now > rung.least:
            return LadderStep(key=rung.key, before=float(now), value=float(max(rung.least, now // 2)))
    if "--enforce-eager" in pool.extra_args:
        return None
    return LadderStep(key="enforce-eager", before=0.0, value=1.0)


def _stated(words: tuple[str, ...], flag: str) -> int | None:
    """The number that the words give a flag, in either spelling; None where they give none."""
    found = None
    for word, following in pairwise((*words, "")):
        name, equals, value = word.partition("=")
        text = value if equals else following
        if name.replace("_", "-") == flag and text.isdecimal():
            found = int(text)
    return found


def _without(words: tuple[str, ...], flag: str) -> tuple[str, ...]:
    """The words without a flag and its value."""
    kept: list[str] = []
    skip = False
    for word in words:
        name, equals, _ = word.partition("=")
        if skip:
            skip = False
        elif name.replace("_", "-") == flag:
            skip = not equals
        else:
            kept.append(word)
    return tuple(kept)
