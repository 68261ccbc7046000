"""When a worker that ended unasked may be started again: backoff and budget. Pure arithmetic on monotonic seconds."""

from __future__ import annotations

from dataclasses import dataclass

from gpuward.config.fleet import RestartPolicy

JITTER_RATIO = 0.1
"""A delay is lengthened by up to this share of itself, so that workers that died together do not come back together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """Start again at ``not_before_s``; the record of failures goes with the worker."""

    not_before_s: float
    failures: tuple[float, ...]
    consecutive: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """No further automatic start."""

    failures: tuple[float, ...]
    reason: str


def restart_delay_s(policy: RestartPolicy, consecutive: int) -> float:
    """Seconds to wait after failure number ``consecutive`` in a row (1 is the first).

    ``delay_first_s`` doubled per further failure, at most ``delay_max_s``.
    """
    doublings = min(max(consecutive - 1, 0), 62)
    return min(policy.delay_max_s, policy.delay_first_s * 2.0**doublings)


def after_failure(
    policy: RestartPolicy,
    *,
    failures: tuple[float, ...],
    consecutive: int,
    ready_for_s: float,
    now_s: float,
    jitter: float,
) -> Restart | GiveUp:
    """Decide on one failure; ``jitter`` in [0, 1) is drawn by the caller.

    Failures older than ``window_s`` are forgotten. The window is kept whatever ``reset_after_s`` says, so no setting
    gives more than ``max_failures`` automatic starts in a window.
    """
    recent = (*(at_s for at_s in failures if now_s - at_s < policy.window_s), now_s)
    if len(recent) > policy.max_failures:
        return GiveUp(
            failures=recent,
            reason=f"gave up after {len(recent)} failures within {policy.window_s:g} s "
            f"(max-failures is {policy.max_failures}); start it by hand when the cause is mended",
        )
    if ready_for_s >= policy.reset_after_s:
        return Restart(
            not_before_s=now_s,
            failures=recent,
            consecutive=0,
            reason=f"starts again at once: it had been ready for {ready_for_s:.0f} s",
        )
    delay_s = restart_delay_s(policy, consecutive + 1) * (1 + JITTER_RATIO * jitter)
    return Restart(
        not_before_s=now_s + delay_s,
        failures=recent,
        consecutive=consecutive + 1,
        reason=f"failure {len(recent)} of {policy.max_failures} allowed within {policy.window_s:g} s",
    )
