"""Frozen, busy, idle: what looks at a ready engine mean."""

from __future__ import annotations

import pytest

from gpuward.config.fleet import Liveness, Pool
from gpuward.policy.liveness import Look, Pulse, after_look, idle, watched

TERMS = Liveness(interval_s=10, misses=3)


def hangs_after(looks: list[Look]) -> tuple[int | None, str]:
    """At which look, from 1, it is called a hang, and how."""
    pulse = Pulse()
    for number, look in enumerate(looks, 1):
        pulse, hung = after_look(pulse, look, TERMS)
        if hung:
            return number, hung
    return None, ""


def test_a_frozen_engine_that_says_it_is_idle_is_found_by_the_token_that_does_not_come() -> None:
    frozen = Look(progress=7, canary="overdue", said="not within 10 s")

    number, reason = hangs_after([Look(progress=7), frozen, frozen, frozen])

    assert number == 4
    assert reason == (
        "it answers /health and has not generated the one token that it was asked for (not within 10 s), "
        "3 looks in a row, one every 10 s"
    )


def test_requests_without_progress_are_a_hang() -> None:
    number, reason = hangs_after([Look(progress=7, requests=2)] * 4)

    assert (number, "it has 2 requests and makes no progress" in reason) == (4, True)


def test_a_server_that_answers_nothing_at_all_is_a_hang() -> None:
    number, reason = hangs_after([Look(progress=None, said="no answer within 10 s")] * 3)

    assert (number, "its counters did not come (no answer within 10 s)" in reason) == (3, True)


def test_a_saturated_server_makes_progress_and_is_not_hung() -> None:
    assert hangs_after([Look(progress=n, requests=500) for n in range(50)]) == (None, "")


def test_a_token_that_waits_its_turn_behind_others_is_no_miss() -> None:
    assert hangs_after([Look(progress=n, canary="overdue", said="late") for n in range(50)]) == (None, "")


def test_an_idle_engine_that_answers_its_canary_or_is_not_asked_is_alive() -> None:
    assert hangs_after([Look(progress=7, canary="came")] * 50) == (None, "")
    assert hangs_after([Look(progress=7)] * 50) == (None, "")


def test_one_sign_of_life_starts_the_count_anew() -> None:
    miss, life = Look(progress=7, requests=1), Look(progress=8, requests=1)

    assert hangs_after([miss, miss, miss, life, Look(progress=8, requests=1), Look(progress=8, requests=1)])[0] is None


def test_the_canary_is_for_engines_whose_counters_prove_nothing() -> None:
    assert idle(Pulse(progress=7), Look(progress=7))
    assert idle(Pulse(), Look(progress=None))
    assert not idle(Pulse(progress=6), Look(progress=7))
    assert not idle(Pulse(progress=7), Look(progress=7, requests=1))


@pytest.mark.parametrize(
    ("engine", "probe", "looks"),
    [
        ("vllm", "auto", True),
        ("simulated", "auto", True),
        ("command", "auto", False),
        ("command", "on", True),
        ("vllm", "off", False),
    ],
)
def test_which_pools_are_looked_at(engine: str, probe: str, looks: bool) -> None:
    assert watched(Pool(name="m", engine=engine, liveness=Liveness(probe=probe))) is looks  # type: ignore[arg-type]
