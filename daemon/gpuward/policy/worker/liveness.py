"""Whether a ready engine still works, from what it answers. A hang is proved or not said. Pure.

vLLM's /health is a flag: with its engine frozen it says 200, and its metrics say idle (measured on 0.32.0). Counters
that stand still while requests run prove a hang, and so does one token that an idle engine was asked for and that does
not come. Without counters nothing does: an engine that has much to do lets that token wait as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from gpuward.config.fleet import Liveness, Pool

IDLE_LOOKS: Final = 6
"""An engine without traffic is asked for a token once in so many looks: each is one more request in its counters."""

OWN_TOKENS: Final = 4
"""What one canary moves the counters by, at most: its token, and the steps of the engine that it took."""


@dataclass(frozen=True, slots=True)
class Count:
    """Counters of one engine: a sum that grows while it works, and the requests that it has."""

    progress: float
    requests: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look. ``answered``: whether the server answered at all; ``engines``: counters by engine, empty without any.

    ``asleep``: it sleeps or is paused. ``canary``: what became of the token that an idle engine was asked for; refused:
    it cannot be asked; failed: the server says that its engine is dead. ``said`` tells what came instead.
    """

    answered: bool
    engines: Mapping[str, Count] = field(default_factory=dict)
    asleep: bool = False
    canary: Literal["not asked", "came", "overdue", "failed", "refused"] = "not asked"
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """What is remembered between looks.

    ``misses``: looks in a row without life, by engine; ``silent``: without an answer. ``quiet``: since the last proof
    of life; ``asked``: the last look had a canary; ``refused``: why it cannot be asked; ``asleep``: it last said so.
    """

    progress: Mapping[str, float] = field(default_factory=dict)
    misses: Mapping[str, int] = field(default_factory=dict)
    silent: int = 0
    quiet: int = 0
    asked: bool = False
    refused: str = ""
    asleep: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """How well a worker is watched. partly: not every hang can be proved; ``reason`` says which and why."""

    state: Literal["watched", "partly", "asleep", "off"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from one look. ``hung`` says how it hangs; empty where it does not, or not yet."""

    pulse: Pulse
    report: Report
    hung: str = ""


def watched(pool: Pool) -> bool:
    """Whether this pool's ready workers are looked at."""
    probe = pool.liveness.probe
    return probe == "on" or (probe == "auto" and pool.engine in {"vllm", "simulated"})


def wants_canary(pulse: Pulse, look: Look, terms: Liveness) -> bool:
    """Whether the counters prove nothing and a token would: nothing works or waits, and that for long or in doubt."""
    if not terms.canary or not look.answered or not look.engines or look.asleep:
        return False
    if _moved(pulse, look) or any(count.requests for count in look.engines.values()):
        return False
    return any(pulse.misses.values()) or pulse.quiet + 1 >= IDLE_LOOKS


def doubtful(pulse: Pulse, look: Look) -> bool:
    """Whether this look will count against an engine, unless it sleeps or is paused."""
    if not look.answered or look.asleep:
        return False
    moved = _moved(pulse, look)
    still = any(count.requests and label not in moved for label, count in look.engines.items())
    return still or look.canary in {"overdue", "failed"}


def after_look(pulse: Pulse, look: Look, terms: Liveness) -> Verdict:
    """Count one look."""
    if not look.answered:
        after = replace(pulse, silent=pulse.silent + 1)
        what = f"it does not answer HTTP at all ({look.said})"
        return Verdict(after, Report("watched"), _hung(what, after.silent, terms))
    progress = {label: count.progress for label, count in look.engines.items()}
    if look.asleep:
        return Verdict(
            Pulse(progress=progress, asleep=True),
            Report("asleep", "the engine sleeps or is paused: nothing is expected of it"),
        )
    moved = _moved(pulse, look)
    misses = {label: pulse.misses.get(label, 0) + 1 for label in look.engines if _lifeless(label, look, moved)}
    asked = look.canary not in {"not asked", "refused"}
    refused = look.said if look.canary == "refused" else "" if look.canary == "came" else pulse.refused
    proved = bool(moved) or look.canary in {"came", "refused"}
    quiet = 0 if proved else pulse.quiet + 1
    after = Pulse(progress=progress, misses=misses, quiet=quiet, asked=asked, refused=refused)
    worst = max(misses, key=lambda label: misses[label], default=None)
    hung = _hung(_what(worst, look), misses[worst], terms) if worst is not None else ""
    return Verdict(after, _report(after, look, terms), hung)


def _moved(pulse: Pulse, look: Look) -> frozenset[str]:
    """Engines that have worked since the last look; what a canary of ours took is not work."""

    def works(label: str, progress: float) -> bool:
        before = pulse.progress.get(label)
        if before is None or progress < before:
            return True
        return progress - before > (OWN_TOKENS if pulse.asked else 0)

    return frozenset(label for label, count in look.engines.items() if works(label, count.progress))


def _lifeless(label: str, look: Look, moved: frozenset[str]) -> bool:
    """An engine with requests that does nothing; or all have nothing to do and the one token does not come.

    Beside an engine that works, an overdue token proves nothing: it may wait in that one's queue.
    """
    if look.canary == "came" or label in moved:
        return False
    others_work = bool(moved) or any(count.requests for other, count in look.engines.items() if other != label)
    return look.engines[label].requests > 0 or (look.canary in {"overdue", "failed"} and not others_work)


def _hung(what: str, misses: int, terms: Liveness) -> str:
    return f"{what}, {misses} looks in a row, one every {terms.interval_s:g} s" if misses >= terms.misses else ""


def _what(label: str, look: Look) -> str:
    requests = look.engines[label].requests
    if look.canary in {"overdue", "failed"}:
        return f"it answers /health and has not generated the one token that it was asked for ({look.said})"
    who = f"its engine {label}, one of {len(look.engines)}," if len(look.engines) > 1 else "it"
    return f"{who} has {requests} requests and makes no progress"


def _report(pulse: Pulse, look: Look, terms: Liveness) -> Report:
    if not look.engines:
        return Report(
            "partly",
            "it tells no counters (--disable-log-stats?): only a server that does not answer is found, no hang",
        )
    if pulse.refused:
        return Report("partly", f"a hang of an idle engine is not found: {pulse.refused}")
    if not terms.canary:
        return Report("partly", "a hang of an idle engine is not found: canary = false")
    return Report("watched")
