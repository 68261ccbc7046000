"""What a new daemon makes of records and run directories."""

from __future__ import annotations

from dataclasses import replace

from gpuward.config.fleet import Pool
from gpuward.policy.fleet.resume import PROBE_AGAIN_S, FoundRun, after_used, resumed, take_over
from gpuward.policy.worker.life import Goal, Phase, Worker

POOL = Pool(name="m", model="org/m", start_timeout_s=600)


def a_worker(**known: object) -> Worker:
    defaults: dict[str, object] = {"name": "m/0", "pool": "m", "index": 0, "goal": Goal.UP, "phase": Phase.READY}
    return Worker(**{**defaults, "run": 3, "ready_since_s": 5.0, **known})  # type: ignore[arg-type]


def a_run(**known: object) -> FoundRun:
    defaults: dict[str, object] = {"worker": "m/0", "run": 3, "kept": True, "pool": POOL, "definition": "abc"}
    places = {"gpu_uuids": ("GPU-0",), "port": 20000, "started_s": 4.0}
    return FoundRun(**{**defaults, **places, **known})  # type: ignore[arg-type]


def test_a_record_that_knows_its_living_run_is_taken_as_it_is() -> None:
    worker = a_worker(definition="abc")

    taken = take_over({"m": POOL}, {"m/0": worker}, [a_run()], {}, now_s=9.0)

    assert (dict(taken.workers), taken.notes) == ({"m/0": worker}, ())


def test_a_living_run_without_a_record_is_taken_over_with_its_number_its_gpus_and_its_port() -> None:
    taken = take_over({"m": POOL}, {}, [a_run()], {}, now_s=9.0)

    worker = taken.workers["m/0"]
    assert (worker.phase, worker.goal, worker.run, worker.run_uuids) == (Phase.STARTING, Goal.UP, 3, ("GPU-0",))
    assert (worker.port, worker.definition, worker.deadline_s, worker.grace_s) == (20000, "abc", 609.0, 40.0)
    assert "taken over from run 3, which lives" in taken.notes[0].reason


def test_a_living_run_that_is_newer_than_its_record_wins_and_the_counters_stay() -> None:
    older = a_worker(run=2, phase=Phase.BACKOFF, restarts=7, failures=(1.0, 2.0))

    worker = take_over({"m": POOL}, {"m/0": older}, [a_run()], {}, now_s=9.0).workers["m/0"]

    assert (worker.phase, worker.run, worker.restarts, worker.failures) == (Phase.STARTING, 3, 7, (1.0, 2.0))


def test_a_living_run_of_a_worker_that_is_marked_down_is_stopped() -> None:
    worker = take_over({"m": POOL}, {}, [a_run()], {"m/0": Goal.DOWN}, now_s=9.0).workers["m/0"]

    assert worker.ending is not None
    assert (worker.phase, worker.goal, worker.ending.then) == (Phase.DRAINING, Goal.DOWN, "rest")


def test_a_lost_record_of_a_worker_that_was_stopped_keeps_it_stopped() -> None:
    worker = take_over({"m": POOL}, {}, [a_run(kept=False)], {"m/0": Goal.DOWN}, now_s=9.0).workers["m/0"]

    assert (worker.phase, worker.goal, worker.run) == (Phase.STOPPED, Goal.DOWN, 3)


def test_a_lost_record_of_a_run_that_is_over_keeps_the_number_of_the_run() -> None:
    worker = take_over({"m": POOL}, {}, [a_run(kept=False)], {}, now_s=9.0).workers["m/0"]

    assert (worker.phase, worker.goal, worker.run) == (Phase.BLOCKED, Goal.UP, 3)


def test_a_worker_that_is_not_in_the_fleet_comes_with_the_pool_it_was_started_from() -> None:
    other = Pool(name="old", model="org/m", stop_timeout_s=3.0)

    taken = take_over({"m": POOL}, {}, [a_run(worker="old/1", pool=other)], {}, now_s=9.0)

    assert (list(taken.workers), taken.pools["old"]) == (["old/1"], other)


def test_a_start_whose_deadline_passed_meanwhile_may_still_prove_itself() -> None:
    starting = a_worker(phase=Phase.STARTING, ready_since_s=None, deadline_s=10.0)

    worker = resumed(starting, same_boot=True, now_s=1000.0)

    assert worker.deadline_s == 1000.0 + PROBE_AGAIN_S


def test_a_stop_of_the_daemon_that_was_cut_short_is_no_stop_of_its_workers() -> None:
    draining = a_worker(phase=Phase.DRAINING, then="halt", halted=True, deadline_s=50.0)
    stopping = replace(draining, phase=Phase.STOPPING)

    goes_on, comes_back = (resumed(worker, same_boot=True, now_s=9.0) for worker in (draining, stopping))

    assert comes_back.ending is not None
    assert (goes_on.phase, goes_on.ending, goes_on.halted) == (Phase.READY, None, False)
    assert (comes_back.phase, comes_back.ending.then, comes_back.halted) == (Phase.STOPPING, "start", False)


def test_after_a_boot_a_wanted_worker_starts_anew_and_a_stopped_one_does_not() -> None:
    up, down = a_worker(failures=(1.0,)), a_worker(goal=Goal.DOWN, phase=Phase.STOPPED)

    again, still = (resumed(worker, same_boot=False, now_s=9.0) for worker in (up, down))

    assert (again.phase, again.failures, "reboot" in again.reason) == (Phase.BLOCKED, (), True)
    assert still.phase is Phase.STOPPED


def test_a_record_of_a_version_without_definitions_gets_that_of_its_run() -> None:
    worker = take_over({"m": POOL}, {"m/0": a_worker()}, [a_run()], {}, now_s=9.0).workers["m/0"]

    assert worker.definition == "abc"


def test_a_stop_whose_record_could_not_be_written_holds_for_the_next_daemon() -> None:
    running = a_worker(phase=Phase.READY, goal=Goal.UP)

    worker = take_over({"m": POOL}, {"m/0": running}, [a_run()], {"m/0": Goal.DOWN}, now_s=9.0).workers["m/0"]

    assert (worker.goal, worker.phase) == (Goal.DOWN, Phase.DRAINING)


def test_a_start_whose_record_could_not_be_written_holds_too() -> None:
    rests = a_worker(phase=Phase.STOPPED, goal=Goal.DOWN)

    worker = take_over({"m": POOL}, {"m/0": rests}, [], {"m/0": Goal.UP}, now_s=9.0).workers["m/0"]

    assert (worker.goal, worker.phase) == (Goal.UP, Phase.BLOCKED)


def test_a_stopped_worker_stays_stopped_though_nothing_else_is_known_of_it() -> None:
    worker = take_over({"m": POOL}, {}, [], {"m/0": Goal.DOWN}, now_s=9.0).workers["m/0"]

    assert (worker.goal, worker.phase) == (Goal.DOWN, Phase.STOPPED)


def test_a_worker_whose_record_is_older_than_what_its_runs_left_goes_on_behind_them() -> None:
    rests, lives = a_worker(phase=Phase.STOPPED, run=3), replace(a_worker(), name="m/1", run=3)

    numbered = after_used({"m/0": rests, "m/1": lives}, {"m/0": 8, "m/1": 8})

    assert (numbered["m/0"].run, numbered["m/1"].run) == (8, 3)
