"""Why runs end: the causes, and the record of a text that points to one. Records only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from gpuward.config.host import SignatureRule
from gpuward.config.patterns import Pattern, compiled
from gpuward.policy.reasons import By


class Cause(StrEnum):
    """Why a run ended."""

    GPU_OOM_STARTUP = "gpu-oom-startup"
    GPU_OOM_RUNTIME = "gpu-oom-runtime"
    KV_CACHE_TOO_SMALL = "kv-cache-too-small"
    GPU_BUSY = "gpu-busy"
    PROFILING_RACE = "profiling-race"
    HOST_OOM = "host-oom"
    CUDA_FAULT = "cuda-fault"
    GPU_HARDWARE = "gpu-hardware"
    PORT_CONFLICT = "port-conflict"
    CONFIG_ERROR = "config-error"
    HANG = "hang"
    START_TIMEOUT = "start-timeout"
    COMMANDED = "commanded"
    MEMORY_BREACH = "memory-breach"
    MOVED = "moved"
    CRASH = "crash"


@dataclass(frozen=True, slots=True)
class Signature:
    """One text and what it means.

    ``literal`` stands in every line that ``pattern`` finds: a plain search for it is many times faster. ``says`` is
    filled with the named groups of the pattern. ``phase``: a text that means something in that phase only (a bad
    request can print a ValidationError in a healthy server). ``following``: lines behind the match that belong to it.
    ``permanent``: a new start with the same configuration ends the same way. ``quiet``: also where the line is one of
    level INFO. ``times``: lines needed before it counts. ``own``: of the host's settings, for any worker's words.
    """

    cause: Cause
    literal: str
    pattern: Pattern
    says: str
    hint: str = ""
    permanent: bool = False
    phase: Literal["any", "starting", "ready"] = "any"
    following: int = 0
    quiet: bool = False
    times: int = 1
    own: bool = False


def own_signatures(rules: Iterable[SignatureRule]) -> tuple[Signature, ...]:
    """Return the signatures that the host's settings add."""
    return tuple(
        Signature(
            Cause(rule.cause),
            rule.contains,
            compiled(rule.pattern) if rule.pattern else re.compile(re.escape(rule.contains)),
            rule.says,
            hint=rule.hint,
            permanent=rule.permanent,
            phase=rule.phase,
            own=True,
        )
        for rule in rules
    )


def signature(cause: Cause, literal: str, pattern: str, says: str, **rest: object) -> Signature:
    """Return a signature with its pattern compiled; ``rest`` are its other fields."""
    return Signature(cause, literal, re.compile(pattern), says, **rest)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class LastExit:
    """How a run ended; ``at`` is wall time in seconds since the epoch, ``reason`` says it in one sentence.

    ``xids``: the GPU errors that are in the evidence, as `last_moments.XidHeard.named`.
    ``first_error``: what a start that failed for no known cause said first, without its numbers; empty for other ends.
    ``ended_by``: the kind of `reasons.Ending`, empty where nothing but itself ended it; ``by``: the person who asked.
    """

    run: int
    cause: str
    code: int | None
    signal: int | None
    at: float
    evidence: tuple[str, ...] = ()
    reason: str = ""
    xids: tuple[str, ...] = ()
    first_error: str = ""
    ended_by: str = ""
    by: By | None = None
