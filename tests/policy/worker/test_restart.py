"""Backoff and budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpuward.config.fleet import RestartPolicy
from gpuward.policy.worker.restart import JITTER_RATIO, GiveUp, Restart, after_failure, restart_delay_s


def decide(policy: RestartPolicy, **known: object) -> Restart | GiveUp:
    defaults: dict[str, object] = {"failures": (), "consecutive": 0, "ready_for_s": 0.0, "now_s": 1000.0, "jitter": 0.0}
    return after_failure(policy, **{**defaults, **known})  # type: ignore[arg-type]


def test_delays_double_up_to_the_maximum() -> None:
    policy = RestartPolicy(delay_first_s=2, delay_max_s=12)

    delays = [restart_delay_s(policy, failure) for failure in range(1, 6)]

    assert delays == [2, 4, 8, 12, 12]


def test_a_very_long_row_of_failures_does_not_overflow() -> None:
    assert restart_delay_s(RestartPolicy(), 100_000) == 120


def test_jitter_lengthens_a_delay_by_at_most_a_tenth() -> None:
    shortest = decide(RestartPolicy(), jitter=0.0)
    longest = decide(RestartPolicy(), jitter=0.999)

    assert isinstance(shortest, Restart)
    assert isinstance(longest, Restart)
    assert shortest.not_before_s == 1002.0
    assert 1002.0 < longest.not_before_s < 1000.0 + 2.0 * (1 + JITTER_RATIO)


def test_one_failure_more_than_allowed_gives_up_and_says_the_numbers() -> None:
    verdict = decide(RestartPolicy(max_failures=5), failures=(950.0, 960.0, 970.0, 980.0, 990.0), consecutive=5)

    assert isinstance(verdict, GiveUp)
    assert "6 failures within 600 s" in verdict.reason
    assert "max-failures is 5" in verdict.reason


def test_failures_older_than_the_window_are_forgotten() -> None:
    verdict = decide(RestartPolicy(max_failures=2, window_s=60), failures=(900.0, 930.0, 939.9), consecutive=3)

    assert isinstance(verdict, Restart)
    assert verdict.failures == (1000.0,)


def test_after_a_long_ready_life_it_starts_at_once_and_counts_anew() -> None:
    verdict = decide(RestartPolicy(), failures=(100.0,), consecutive=4, ready_for_s=600.0)

    assert verdict == Restart(
        not_before_s=1000.0,
        failures=(1000.0,),
        consecutive=0,
        reason="starts again at once: it had been ready for 600 s",
    )


@given(
    max_failures=st.integers(0, 6),
    window_s=st.floats(1, 100),
    reset_after_s=st.floats(0, 10),
    lives=st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60),
)
def test_automatic_starts_in_any_window_never_exceed_the_budget(
    max_failures: int, window_s: float, reset_after_s: float, lives: list[tuple[float, bool]]
) -> None:
    policy = RestartPolicy(
        max_failures=max_failures, window_s=window_s, reset_after_s=reset_after_s, delay_first_s=0.01, delay_max_s=0.05
    )
    now_s, failures, consecutive, starts = 0.0, (), 0, []
    for lived_s, was_ready in lives:
        now_s += lived_s
        verdict = after_failure(
            policy,
            failures=failures,
            consecutive=consecutive,
            ready_for_s=lived_s if was_ready else 0.0,
            now_s=now_s,
            jitter=0.5,
        )
        if isinstance(verdict, GiveUp):
            break
        failures, consecutive = verdict.failures, verdict.consecutive
        now_s = verdict.not_before_s
        starts.append(failures[-1])

    for first in starts:
        assert sum(first <= at < first + window_s for at in starts) <= max_failures
