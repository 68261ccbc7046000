"""Frozen, busy, idle, asleep: what looks at a ready engine mean, and what proves nothing."""

from __future__ import annotations

from typing import Any

import pytest

from gpuward.config.fleet import Liveness, Pool
from gpuward.policy.worker.liveness import (
    IDLE_LOOKS,
    Count,
    Look,
    Pulse,
    Report,
    after_look,
    doubtful,
    wants_canary,
    watched,
)

TERMS = Liveness(interval_s=10, misses=3)


def a_look(progress: float, requests: int = 0, **more: Any) -> Look:
    return Look(answered=True, engines={"0": Count(progress, requests)}, **more)


def two_engines(first: tuple[float, int], second: tuple[float, int], **more: Any) -> Look:
    return Look(answered=True, engines={"0": Count(*first), "1": Count(*second)}, **more)


def judged(looks: list[Look], terms: Liveness = TERMS) -> tuple[int | None, str, Report]:
    """At which look, from 1, it is called a hang, and how; and the last report."""
    pulse, report = Pulse(), Report("off")
    for number, look in enumerate(looks, 1):
        verdict = after_look(pulse, look, terms)
        pulse, report = verdict.pulse, verdict.report
        if verdict.hung:
            return number, verdict.hung, report
    return None, "", report


FROZEN = a_look(7, canary="overdue", said="not within 10 s")
SILENT = Look(answered=False, said="no answer within 8 s")
NO_COUNTERS = Look(answered=True)


def test_a_frozen_engine_that_says_it_is_idle_is_found_by_the_token_that_does_not_come() -> None:
    number, reason, _ = judged([a_look(7), FROZEN, FROZEN, FROZEN])

    assert number == 4
    assert reason == (
        "it answers /health and has not generated the one token that it was asked for (not within 10 s), "
        "3 looks in a row, one every 10 s"
    )


def test_requests_without_progress_are_a_hang() -> None:
    number, reason, _ = judged([a_look(7, 2)] * 4)

    assert (number, "it has 2 requests and makes no progress" in reason) == (4, True)


def test_a_server_that_answers_nothing_is_described_as_that() -> None:
    number, reason, _ = judged([SILENT] * 3)

    assert (number, reason) == (
        3,
        "it does not answer HTTP at all (no answer within 8 s), 3 looks in a row, one every 10 s",
    )


def test_one_frozen_engine_of_two_hangs_although_the_sum_moves() -> None:
    number, reason, _ = judged([two_engines((n, 3), (7, 2)) for n in range(10)])

    assert (number, "its engine 1, one of 2, has 2 requests and makes no progress" in reason) == (4, True)


def test_a_token_that_is_overdue_beside_an_engine_that_works_proves_nothing() -> None:
    looks = [two_engines((n * 100, 3), (7, 0), canary="overdue", said="late") for n in range(50)]

    assert judged(looks)[0] is None


def test_two_idle_engines_of_which_neither_answers_hang() -> None:
    assert judged([two_engines((7, 0), (7, 0), canary="overdue", said="late")] * 4)[0] == 4


def test_a_saturated_server_makes_progress_and_is_not_hung() -> None:
    assert judged([a_look(n, 500) for n in range(50)])[0] is None


def test_a_token_that_waits_its_turn_behind_others_is_no_miss() -> None:
    assert judged([a_look(n * 100, canary="overdue", said="late") for n in range(50)])[0] is None


def test_without_counters_nothing_proves_a_hang_and_it_says_so() -> None:
    number, _, report = judged([NO_COUNTERS] * 50)

    assert number is None
    assert report.state == "partly"
    assert "--disable-log-stats" in report.reason
    assert not wants_canary(Pulse(quiet=100), NO_COUNTERS, TERMS)


def test_an_engine_that_sleeps_is_left_alone_and_counted_anew_when_it_wakes_up() -> None:
    asleep = a_look(7, 3, asleep=True)

    number, _, report = judged([asleep] * 50)

    assert (number, report.state) == (None, "asleep")
    assert not wants_canary(Pulse(quiet=100), asleep, TERMS)
    assert judged([a_look(7, 3), a_look(7, 3), a_look(7, 3), asleep, a_look(7, 3), a_look(7, 3)])[0] is None


def test_a_token_that_cannot_be_asked_for_is_no_life_and_no_hang() -> None:
    refused = a_look(7, canary="refused", said="it wants an API key")

    number, _, report = judged([a_look(7), *[refused] * 50])

    assert number is None
    assert report == Report("partly", "a hang of an idle engine is not found: it wants an API key")
    assert judged([a_look(7), refused, *[a_look(7, 1)] * 3])[0] == 5


def test_one_sign_of_life_starts_the_count_anew() -> None:
    miss = a_look(7, 1)

    assert judged([miss, miss, miss, a_look(8, 1), a_look(8, 1), a_look(8, 1)])[0] is None
    assert judged([a_look(7), FROZEN, FROZEN, a_look(7, canary="came"), FROZEN, FROZEN])[0] is None


def asked_at(looks: int, progress_of_token: int) -> list[int]:
    """At which looks an idle engine is asked; each token moves its counters."""
    pulse, progress, asked = Pulse(), 7.0, []
    for number in range(1, looks + 1):
        look = a_look(progress)
        if wants_canary(pulse, look, TERMS):
            asked.append(number)
            progress += progress_of_token
            look = a_look(look.engines["0"].progress, canary="came")
        pulse = after_look(pulse, look, TERMS).pulse
    return asked


def test_an_idle_engine_is_asked_once_in_a_while_and_its_own_token_is_no_traffic() -> None:
    assert asked_at(19, 2) == [1 + IDLE_LOOKS, 1 + 2 * IDLE_LOOKS, 1 + 3 * IDLE_LOOKS]


def test_a_doubt_is_followed_up_at_once() -> None:
    after = after_look(after_look(Pulse(), a_look(7), TERMS).pulse, FROZEN, TERMS).pulse

    assert wants_canary(after, a_look(7), TERMS)


def test_traffic_is_proof_enough() -> None:
    assert not wants_canary(Pulse(progress={"0": 6}, quiet=100), a_look(7), TERMS)
    assert not wants_canary(Pulse(progress={"0": 7}, quiet=100), a_look(7, 1), TERMS)
    assert wants_canary(Pulse(progress={"0": 7}, quiet=100), a_look(7), TERMS)
    assert not wants_canary(Pulse(progress={"0": 7}, quiet=100), a_look(7), Liveness(canary=False))


def test_what_counts_against_an_engine_is_doubted_first() -> None:
    before = Pulse(progress={"0": 7})

    assert doubtful(before, FROZEN)
    assert doubtful(before, a_look(7, 1))
    assert not doubtful(before, a_look(8, 1))
    assert not doubtful(before, SILENT)


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
