"""One worker's life, event by event."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpuward.config.fleet import Pool, RestartPolicy
from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.reasons import By
from gpuward.policy.worker.life import (
    BecameReady,
    Condemned,
    DeadlinePassed,
    Drained,
    Event,
    Goal,
    HaltAsked,
    Hung,
    Kill,
    KillRest,
    Note,
    Phase,
    ProbeMissed,
    RestartAsked,
    RunEnded,
    StartAsked,
    StartRefused,
    StopAsked,
    TakeSample,
    Terminate,
    Worker,
)
from gpuward.policy.worker.phases import at_present
from gpuward.policy.worker.step import begin_run, begin_stop, step

POOL = Pool(name="decode", model="m", stop_timeout_s=30, start_timeout_s=600)


def a_worker(**known: object) -> Worker:
    defaults: dict[str, object] = {
        "name": "decode/0",
        "pool": "decode",
        "index": 0,
        "goal": Goal.UP,
        "phase": Phase.READY,
        "run": 3,
        "device_uuids": ("GPU-0",),
        "run_uuids": ("GPU-0",),
        "started_s": 0.0,
        "ready_since_s": 5.0,
        "reason": "ready",
    }
    return Worker(**{**defaults, **known})  # type: ignore[arg-type]


def an_end(run: int = 3, *, permanent: bool = False, code: int | None = 1) -> RunEnded:
    exit_ = LastExit(run=run, cause="crash", code=code, signal=None, at=1.0)
    return RunEnded(run=run, exit=exit_, permanent=permanent, reason="crash: ended with code 1")


def test_a_commanded_stop_during_backoff_is_final() -> None:
    worker = a_worker(phase=Phase.BACKOFF, not_before_s=50.0)

    stopped, effects = step(worker, StopAsked(), POOL, 20.0)

    assert (stopped.phase, stopped.goal, effects) == (Phase.STOPPED, Goal.DOWN, ())


def test_a_start_by_the_operator_during_backoff_starts_now_and_zeroes_the_count() -> None:
    worker = a_worker(phase=Phase.BACKOFF, not_before_s=50.0, failures=(1.0, 2.0), consecutive=2)

    started, effects = step(worker, StartAsked(), POOL, 20.0)

    assert (started.phase, started.not_before_s, started.failures, started.consecutive) == (Phase.BLOCKED, 20.0, (), 0)
    assert effects == (TakeSample(),)


def test_an_unasked_end_is_a_failure_whatever_the_code() -> None:
    ended, effects = step(a_worker(), an_end(code=0), POOL, 100.0)

    assert (ended.phase, ended.failures, ended.not_before_s) == (Phase.RELEASING, (100.0,), 102.0)
    assert effects == (TakeSample(),)


def test_a_permanent_cause_is_not_tried_again() -> None:
    ended, effects = step(a_worker(phase=Phase.STARTING, ready_since_s=None), an_end(permanent=True), POOL, 100.0)

    assert (ended.phase, effects) == (Phase.FAILED, ())
    assert ended.reason == ("crash: ended with code 1; not tried again; mend the cause, then gpuctl start decode/0")


def test_mode_never_keeps_the_worker_known_and_its_exit() -> None:
    pool = Pool(name="decode", model="m", restart=RestartPolicy(mode="never"))

    ended, _ = step(a_worker(), an_end(code=7), pool, 100.0)

    assert ended.phase is Phase.STOPPED
    assert ended.last_exit is not None
    assert ended.last_exit.code == 7


def test_a_commanded_restart_never_counts_as_a_failure() -> None:
    worker = a_worker()

    for turn in range(50):
        now_s = 100.0 + turn
        worker, _ = step(worker, RestartAsked("restart by command"), POOL, now_s)
        worker, _ = begin_stop(worker, POOL, now_s)
        worker, _ = step(worker, an_end(run=worker.run), POOL, now_s)
        assert worker.phase is Phase.RELEASING
        worker, _ = begin_run(replace(worker, phase=Phase.BLOCKED), POOL, now_s)
        worker, _ = step(worker, BecameReady(worker.run), POOL, now_s)

    assert (worker.phase, worker.failures, worker.restarts) == (Phase.READY, (), 50)


def test_the_grace_time_over_means_kill_then_kill_the_keeper() -> None:
    stopping, asked = begin_stop(a_worker(reason="stopped by command"), POOL, 100.0)
    killed, kill = step(stopping, DeadlinePassed(), POOL, 130.0)
    desperate, kill_rest = step(killed, DeadlinePassed(), POOL, 140.0)

    assert (asked, kill, kill_rest) == ((Terminate("decode/0"),), (Kill("decode/0"),), (KillRest("decode/0"),))
    assert stopping.deadline_s == 130.0
    assert desperate.deadline_s is not None


@pytest.mark.parametrize(
    ("ready_since_s", "pool", "grace_s"),
    [
        (5.0, POOL, 30.0),
        (None, POOL, 10.0),
        (None, Pool(name="decode", model="m", stop_timeout_s=3), 3.0),
        (None, Pool(name="decode", engine="command", command=("/bin/x",), stop_timeout_s=30), 30.0),
    ],
    ids=["serves", "loads", "loads, less is asked", "a command of its own"],
)
def test_a_vllm_that_still_loads_is_given_ten_seconds_at_most(
    ready_since_s: float | None, pool: Pool, grace_s: float
) -> None:
    stopping, effects = begin_stop(a_worker(ready_since_s=ready_since_s), pool, 10.0)

    assert (stopping.deadline_s, effects) == (10.0 + grace_s, (Terminate("decode/0"),))
    assert stopping.reason.endswith(f"SIGTERM sent, SIGKILL follows after {grace_s:g} s")


def test_a_run_keeps_the_time_to_end_that_it_was_started_with_while_its_pool_gets_another_drain() -> None:
    before = Pool(name="decode", model="m", drain_timeout_s=120)
    running = replace(begin_run(a_worker(), before, 0.0)[0], phase=Phase.READY, ready_since_s=5.0)

    stopping, _ = begin_stop(running, Pool(name="decode", model="m", drain_timeout_s=2), 10.0)
    counted, _ = step(stopping, Drained(4, 2), Pool(name="decode", model="m", drain_timeout_s=2), 11.0)

    assert stopping.deadline_s == 10.0 + 130.0
    assert counted.reason.endswith("draining, 2 requests running; SIGKILL follows 130 s after SIGTERM")


def test_a_stop_timeout_that_is_changed_alone_counts_for_the_run_that_goes_on() -> None:
    running = replace(begin_run(a_worker(), POOL, 0.0)[0], phase=Phase.READY, ready_since_s=5.0)

    stopping, _ = begin_stop(running, Pool(name="decode", model="m", stop_timeout_s=90), 10.0)

    assert stopping.deadline_s == 100.0


def test_a_start_that_takes_too_long_is_a_failure_with_its_numbers() -> None:
    starting = a_worker(phase=Phase.STARTING, ready_since_s=None, deadline_s=600.0)

    stopping, effects = step(starting, DeadlinePassed(), POOL, 600.0)
    ended, _ = step(stopping, an_end(), POOL, 610.0)

    assert "not ready within start-timeout-s = 600 s" in stopping.reason
    assert effects == (Terminate("decode/0"),)
    assert ended.failures == (610.0,)


def test_a_start_that_takes_too_long_tells_what_was_missing_last() -> None:
    starting = a_worker(phase=Phase.STARTING, ready_since_s=None, deadline_s=600.0)
    waiting, _ = step(starting, ProbeMissed(starting.run, "port 8000 answers 503"), POOL, 500.0)

    stopping, _ = step(waiting, DeadlinePassed(), POOL, 600.0)

    assert stopping.ending is not None
    assert stopping.ending.why == "not ready within start-timeout-s = 600 s: last: port 8000 answers 503"


def test_a_stop_during_a_restart_cancels_the_restart() -> None:
    worker, _ = step(a_worker(), RestartAsked("restart by command"), POOL, 10.0)
    worker, _ = begin_stop(worker, POOL, 10.0)
    worker, _ = step(worker, StopAsked(), POOL, 11.0)

    ended, _ = step(worker, an_end(), POOL, 12.0)

    assert (ended.phase, ended.goal) == (Phase.STOPPED, Goal.DOWN)


def test_a_start_during_a_stop_starts_when_the_stop_is_done() -> None:
    worker, _ = step(a_worker(), StopAsked(), POOL, 10.0)
    worker, _ = begin_stop(worker, POOL, 10.0)
    worker, _ = step(worker, StartAsked(), POOL, 11.0)

    ended, _ = step(worker, an_end(), POOL, 12.0)

    assert (ended.phase, ended.goal) == (Phase.RELEASING, Goal.UP)


def test_a_stop_of_the_daemon_keeps_the_goal_and_marks_the_worker() -> None:
    worker, _ = step(a_worker(), HaltAsked(), POOL, 10.0)
    worker, _ = begin_stop(worker, POOL, 10.0)

    ended, _ = step(worker, an_end(), POOL, 12.0)

    assert (ended.phase, ended.goal, ended.halted) == (Phase.STOPPED, Goal.UP, True)


def test_news_of_an_earlier_run_changes_nothing() -> None:
    worker = a_worker(phase=Phase.STARTING, ready_since_s=None)

    for stale in (BecameReady(2), ProbeMissed(2, "x"), an_end(run=2), StartRefused(2, "x")):
        assert step(worker, stale, POOL, 10.0) == (worker, ())


def test_a_refused_start_waits_for_the_condition_and_is_no_failure() -> None:
    worker = a_worker(phase=Phase.STARTING, ready_since_s=None)

    blocked, effects = step(worker, StartRefused(3, "waits for port 8000"), POOL, 10.0)

    assert (blocked.phase, blocked.run, blocked.failures, effects) == (Phase.BLOCKED, 2, (), ())
    told = [at_present(blocked, now_s) for now_s in (10.0, 10.6, 11.0)]
    refused = "waits for port 8000; refusal 1"
    assert told == [f"{refused}, tries again in 1 s", f"{refused}, tries again in 0.4 s", refused]
    assert blocked.not_before_s == 11.0


def refused_again_and_again(worker: Worker, times: int) -> tuple[Worker, list[float]]:
    pauses_s = []
    for _ in range(times):
        worker, _ = begin_run(worker, POOL, 10.0)
        worker, _ = step(worker, StartRefused(worker.run, "waits for port 8000"), POOL, 10.0)
        pauses_s.append(worker.not_before_s - 10.0)
    return worker, pauses_s


def test_a_start_that_is_refused_again_and_again_keeps_its_number_and_waits_longer_each_time() -> None:
    blocked = a_worker(phase=Phase.BLOCKED, run=2, ready_since_s=None)

    worker, pauses_s = refused_again_and_again(blocked, 1100)

    assert (worker.run, worker.phase) == (2, Phase.BLOCKED)
    assert pauses_s[:7] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert pauses_s[-1] == 30.0


@pytest.mark.parametrize("event", [BecameReady(3), an_end(run=3), RestartAsked("by command"), StartAsked()])
def test_a_run_that_starts_and_a_command_end_the_row_of_refusals(event: Event) -> None:
    blocked = a_worker(phase=Phase.BLOCKED, run=2, ready_since_s=None)
    refused, _ = refused_again_and_again(blocked, 5)
    started, _ = begin_run(refused, POOL, 50.0)

    after, _ = step(started, event, POOL, 60.0)

    assert (refused.refusals, after.refusals) == (5, 0)


def test_a_hung_run_is_killed_whole_at_once_and_its_end_is_a_failure() -> None:
    dying, effects = step(a_worker(), Hung(3, "no token within 10 s"), POOL, 10.0)
    ended, _ = step(dying, an_end(), POOL, 11.0)

    assert (dying.phase, dying.reason, effects) == (Phase.STOPPING, "hangs: no token within 10 s", (Kill("decode/0"),))
    assert (ended.phase, ended.failures) == (Phase.RELEASING, (11.0,))


def test_only_a_ready_run_hangs() -> None:
    for phase in set(Phase) - {Phase.READY}:
        assert step(a_worker(phase=phase), Hung(3, "r"), POOL, 10.0)[1] == ()


EVENTS: tuple[Event, ...] = (
    StartAsked(),
    StopAsked(),
    RestartAsked("r"),
    HaltAsked(),
    BecameReady(3),
    ProbeMissed(3, "r"),
    Hung(3, "r"),
    StartRefused(3, "r"),
    an_end(),
    DeadlinePassed(),
)


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_is_legal_in_every_phase_and_leaves_a_reason(phase: Phase, event: Event) -> None:
    stepped, _ = step(a_worker(phase=phase), event, POOL, 10.0)

    assert stepped.reason


@pytest.mark.parametrize("phase", list(Phase))
def test_nothing_but_a_command_leaves_a_goal_down(phase: Phase) -> None:
    worker = a_worker(phase=phase, goal=Goal.DOWN)

    for event in EVENTS:
        if not isinstance(event, StartAsked | RestartAsked):
            stepped, _ = step(worker, event, POOL, 10.0)
            assert stepped.goal is Goal.DOWN


def stopping_after(event: Event) -> Worker:
    """A worker that has been asked, drained, and sent a SIGTERM at 20 s."""
    draining, _ = step(a_worker(), event, POOL, now_s=20.0)
    return begin_stop(draining, POOL, 20.0)[0]


def test_a_stop_that_needs_sigkill_rests_as_stopped_by_command() -> None:
    killed, _ = step(stopping_after(StopAsked()), DeadlinePassed(), POOL, now_s=50.0)

    rests, _ = step(killed, an_end(), POOL, now_s=51.0)

    assert killed.wait is not None
    assert killed.wait.kind == "killed"
    assert (rests.phase, rests.reason) == (Phase.STOPPED, "stopped by command")


def test_a_stop_asked_while_a_start_timeout_ends_the_run_is_named() -> None:
    starting = a_worker(phase=Phase.STARTING, ready_since_s=None, deadline_s=600.0)
    late, _ = step(starting, DeadlinePassed(), POOL, now_s=600.0)

    asked, _ = step(late, StopAsked(), POOL, now_s=601.0)
    rests, _ = step(asked, an_end(), POOL, now_s=602.0)

    assert asked.ending is not None
    assert asked.ending.kind == "stop"
    assert asked.reason.startswith("stopped by command; SIGTERM sent")
    assert (rests.phase, rests.reason) == (Phase.STOPPED, "stopped by command")


def test_a_restart_reason_with_a_semicolon_arrives_whole() -> None:
    stopping = stopping_after(RestartAsked("env changed; moves to GPU 2"))

    releasing, _ = step(stopping, an_end(), POOL, now_s=21.0)

    assert stopping.reason.startswith("env changed; moves to GPU 2; SIGTERM sent")
    assert (releasing.phase, releasing.reason) == (Phase.RELEASING, "env changed; moves to GPU 2")


def test_a_hang_whose_tree_outlives_sigkill_keeps_its_evidence() -> None:
    hung, _ = step(a_worker(), Hung(3, "no token within 10 s; 4 requests wait"), POOL, now_s=100.0)

    stuck, _ = step(hung, DeadlinePassed(), POOL, now_s=110.0)

    assert stuck.ending is not None
    assert (stuck.ending.kind, stuck.ending.why) == ("hang", "hangs: no token within 10 s; 4 requests wait")
    assert stuck.reason.startswith("hangs: no token within 10 s; 4 requests wait; processes outlive SIGKILL")


@pytest.mark.parametrize(
    ("event", "phase"),
    [
        (StopAsked(by=By(uid=1, user="bob")), Phase.STOPPED),
        (HaltAsked(), Phase.STOPPED),
        (RestartAsked("restart by command"), Phase.RELEASING),
    ],
)
def test_a_command_during_the_kill_of_a_hung_run_is_followed_and_the_hang_stays_its_cause(
    event: Event, phase: Phase
) -> None:
    hung, _ = step(a_worker(), Hung(3, "no token within 10 s"), POOL, now_s=100.0)

    asked, _ = step(hung, event, POOL, now_s=101.0)
    rests, _ = step(asked, an_end(), POOL, now_s=102.0)

    assert asked.ending is not None
    assert (asked.ending.kind == "hang", asked.ending.hang) == (False, "hangs: no token within 10 s")
    assert (rests.phase, rests.failures, rests.reason) == (phase, (), asked.why)


def test_a_restart_whose_run_is_refused_at_its_spawn_starts_all_the_same() -> None:
    stopping = stopping_after(RestartAsked("restart by command"))

    again, _ = step(stopping, StartRefused(3, "the lease is held", kind="lease"), POOL, now_s=21.0)

    assert again.wait is not None
    assert (again.phase, again.goal, again.ending, again.wait.kind) == (Phase.BLOCKED, Goal.UP, None, "lease")
    assert again.run == 3  # who waits for this restart waits for run 4


def test_the_daemons_stop_leaves_a_commanded_stop_what_it_is() -> None:
    halted, _ = step(stopping_after(StopAsked()), HaltAsked(), POOL, now_s=21.0)

    rests, _ = step(halted, an_end(), POOL, now_s=22.0)

    assert (rests.halted, rests.reason) == (False, "stopped by command")


def test_the_number_of_a_start_that_left_a_log_does_not_come_again() -> None:
    starting = a_worker(phase=Phase.STARTING, ready_since_s=None)

    without, _ = step(starting, StartRefused(3, "the lease is held", kind="lease"), POOL, now_s=1.0)
    with_log, _ = step(starting, StartRefused(3, "no room", kind="lease", spent=True), POOL, now_s=1.0)

    assert (without.run, with_log.run) == (2, 3)


def test_breach_restarts_wait_and_count_like_failures_and_end_with_the_budget() -> None:
    pool = Pool(name="decode", model="m", restart=RestartPolicy(max_failures=2, window_s=600, delay_first_s=4))
    worker, ended = a_worker(ready_since_s=99.0), []
    for now_s in (100.0, 110.0):
        draining, _ = step(replace(worker, phase=Phase.READY), Condemned(3, "start", "too much"), pool, now_s)
        worker, _ = step(begin_stop(draining, pool, now_s)[0], an_end(), pool, now_s + 1)
        ended.append(worker.not_before_s)

    ready = replace(worker, phase=Phase.READY, ready_since_s=119.0)
    kept, effects = step(ready, Condemned(3, "start", "too much"), pool, 120.0)

    assert ended == [104.0, 118.0]
    assert kept == ready
    assert [effect.kind for effect in effects if isinstance(effect, Note)] == ["memory-breach-kept"]
    assert step(ready, Condemned(3, "start", "too much", again=True), pool, 121.0) == (ready, ())


def test_what_is_left_until_the_next_start_is_told_of_the_moment() -> None:
    backoff = replace(a_worker(phase=Phase.BACKOFF, reason="crash; failure 5 of 5"), not_before_s=135.0)

    told = [at_present(backoff, now_s) for now_s in (100.0, 121.6, 140.0)]

    assert told == [
        "crash; failure 5 of 5; starts again in 35 s",
        "crash; failure 5 of 5; starts again in 13.4 s",
        "crash; failure 5 of 5",
    ]


def test_a_start_that_comes_late_counts_from_when_it_came() -> None:
    """The daemon was dead for 25 s between the failure at 10 s and the start."""
    blocked = a_worker(phase=Phase.BLOCKED, failures=(1.0, 10.0))

    started, _ = begin_run(blocked, POOL, 35.0)

    assert started.failures == (1.0, 35.0)
