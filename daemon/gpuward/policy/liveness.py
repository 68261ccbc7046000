"""Whether a ready engine still works, from what it answers. A saturated server is not a hung one. Pure.

vLLM's /health is a flag: with its engine frozen it says 200, and its metrics say idle (measured on 0.32.0).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from gpuward.config.fleet import Liveness, Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look. ``progress``: the sum of the engine's counters, None where they did not come; ``requests``: in it.

    ``canary``: what became of the one token that an idle engine was asked for; ``said`` tells a failure.
    """

    progress: float | None
    requests: int = 0
    canary: Literal["came", "overdue", "not asked"] = "not asked"
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """What is remembered between looks: the counters' sum, and how many looks in a row saw no life."""

    progress: float | None = None
    misses: int = 0


def watched(pool: Pool) -> bool:
    """Whether this pool's ready workers are looked at."""
    probe = pool.liveness.probe
    return probe == "on" or (probe == "auto" and pool.engine in {"vllm", "simulated"})


def idle(pulse: Pulse, look: Look) -> bool:
    """Whether the counters alone prove nothing: the engine claims to have no requests, and has done nothing."""
    return look.requests == 0 and (look.progress is None or look.progress == pulse.progress)


def after_look(pulse: Pulse, look: Look, terms: Liveness) -> tuple[Pulse, str]:
    """Return what is remembered, and how the worker hangs; empty where it does not, or not yet."""
    moved = look.progress is not None and look.progress != pulse.progress
    if moved or not _lifeless(look):
        return Pulse(progress=look.progress), ""
    misses = pulse.misses + 1
    after = replace(pulse, progress=look.progress if look.progress is not None else pulse.progress, misses=misses)
    if misses < terms.misses:
        return after, ""
    return after, f"{_what(look)}, {misses} looks in a row, one every {terms.interval_s:g} s"


def _lifeless(look: Look) -> bool:
    """Whether a look without progress is one without life: an engine with nothing to do makes none either."""
    no_counters = look.progress is None and look.said != ""
    return look.canary == "overdue" or (look.canary == "not asked" and (look.requests > 0 or no_counters))


def _what(look: Look) -> str:
    if look.canary == "overdue":
        return f"it answers /health and has not generated the one token that it was asked for ({look.said})"
    if look.progress is None:
        return f"its counters did not come ({look.said})"
    return f"it has {look.requests} requests and makes no progress"
