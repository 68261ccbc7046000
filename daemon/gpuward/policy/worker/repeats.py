"""A start that fails as the one before did fails for good, though nobody knows the exception. Pure."""

from __future__ import annotations

from dataclasses import replace

from gpuward.policy.diagnosis.causes import Cause, LastExit
from gpuward.policy.diagnosis.verdict import Verdict


def with_last(verdict: Verdict, run: int, last: LastExit | None) -> Verdict:
    """Return the verdict on a run with what the worker's last end adds to it: the same once more is a wrong setting.

    Only of the very run before: between two others something may have changed. Nothing that may pass has a
    ``first_error``.
    """
    repeated = last is not None and last.run == run - 1 and last.first_error == verdict.first_error
    if not repeated or not verdict.first_error:
        return verdict
    return replace(
        verdict,
        cause=Cause.CONFIG_ERROR,
        permanent=True,
        hint="correct what the error names and apply the pool again",
        reason=f"{verdict.reason}; the start before it failed with the same error",
    )
