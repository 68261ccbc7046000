"""After SIGKILL of the daemon at any boundary and a new start: nothing lost, nothing twice, goals kept."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.e2e.crash_points import CrashPoint, Outcome

pytestmark = pytest.mark.e2e

PASSED_AT_LEAST = 300
"""Boundaries that the script passes however the timing falls."""

SAMPLE = range(4, PASSED_AT_LEAST, 24)
TAKING_OVER = 23
"""Boundaries up to which the successor is killed in its turn."""

AT_ONCE = 4
LATE = 40
"""How many of the last boundaries a life may lack: what is published twice depends on the timing."""


@pytest.mark.parametrize("at", SAMPLE)
def test_the_next_daemon_goes_on_from_wherever_this_one_was_killed(at: int) -> None:
    assert CrashPoint(at).run().killed_at


@pytest.mark.parametrize("at", SAMPLE[1::3])
def test_a_successor_that_is_killed_while_it_takes_over_loses_nothing_either(at: int) -> None:
    assert len(CrashPoint(at, again=1 + at % TAKING_OVER).run().killed_at) == 2


@pytest.mark.timeout(3600)
@pytest.mark.skipif("GPUWARD_ALL_CRASH_POINTS" not in os.environ, reason="minutes long: GPUWARD_ALL_CRASH_POINTS=1")
def test_every_boundary_is_a_place_to_be_killed_at() -> None:
    passed = CrashPoint(0).run().passed

    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(_killed_twice, range(1, len(passed) + 1)))

    killed = [name for outcome in outcomes for name in outcome.killed_at]
    points = sum(bool(outcome.killed_at) for outcome in outcomes)
    print(f"{points} crash points of {len(passed)} boundaries, {len(killed)} kills survived: {dict(Counter(killed))}")
    assert len(passed) >= PASSED_AT_LEAST
    assert points >= len(passed) - LATE


def _killed_twice(at: int) -> Outcome:
    return CrashPoint(at, again=1 + at % TAKING_OVER).run()
