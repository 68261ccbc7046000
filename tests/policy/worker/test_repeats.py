"""Starts that fail for an unknown cause, once and again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpuward.policy.diagnosis.causes import Cause, LastExit
from gpuward.policy.diagnosis.verdict import RunEnd, Verdict, classify
from gpuward.policy.worker.repeats import with_last

STARTING = RunEnd(code=1, signal=None)
ERROR = "(EngineCore pid=%d) ERROR 11-20 09:10:31 [core.py:708] ValueError: no layer type %d at 0x7f%d"


def failed(number: int, error: str = ERROR, end: RunEnd = STARTING) -> Verdict:
    return classify(end, (error.replace("%d", str(number)), "RuntimeError: Engine core initialization failed."))


def exit_of(verdict: Verdict, run: int) -> LastExit:
    return LastExit(run=run, cause=verdict.cause, code=1, signal=None, at=1.0, first_error=verdict.first_error)


def test_the_same_error_twice_in_a_row_is_final() -> None:
    first = with_last(failed(1), 1, None)
    second = with_last(failed(22), 2, exit_of(first, 1))

    assert (first.cause, first.permanent) == (Cause.CRASH, False)
    assert (second.cause, second.permanent) == (Cause.CONFIG_ERROR, True)
    assert second.reason.endswith("the start before it failed with the same error")


def test_a_start_by_hand_is_tried_once() -> None:
    second = with_last(failed(2), 2, exit_of(failed(1), 1))

    assert with_last(failed(3), 3, exit_of(second, 2)).permanent


@pytest.mark.parametrize(
    "text",
    [
        "ConnectionError: x",
        "OSError: [Errno 111] Connection refused",
        "TimeoutError: x",
        "HTTPError: 503 Server Error",
        "RuntimeError: the device is busy, try again",
    ],
)
def test_what_may_pass_is_tried_as_often_as_the_pool_says(text: str) -> None:
    last = exit_of(failed(1, text), 1)

    assert not with_last(failed(1, text), 2, last).permanent


def test_another_error_another_run_or_another_end_is_no_repetition() -> None:
    last = exit_of(failed(1), 1)

    assert not with_last(failed(1, "KeyError: 'x'"), 2, last).permanent
    assert not with_last(failed(1), 3, last).permanent
    assert not with_last(failed(1, end=replace(STARTING, phase="ready")), 2, last).permanent
    assert not with_last(failed(1, end=replace(STARTING, code=3)), 2, last).permanent
    assert not with_last(classify(STARTING, ("bye",)), 2, exit_of(classify(STARTING, ("bye",)), 1)).permanent
