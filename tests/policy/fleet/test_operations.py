"""What a waiting client is told of its command, whatever else happens to the worker meanwhile."""

from __future__ import annotations

from dataclasses import replace

from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.fleet.operations import Operation, Target, advance, give_way
from gpuward.policy.reasons import Wait
from gpuward.policy.worker.life import Goal, LadderStep, Phase, Worker


def a_worker(**known: object) -> Worker:
    defaults: dict[str, object] = {"name": "w/0", "pool": "w", "index": 0, "goal": Goal.UP, "run": 4, "reason": "r"}
    return Worker(**{**defaults, **known})  # type: ignore[arg-type]


def an_operation(verb: str = "restart", *, down: bool = False, run: int = 4, number: int = 1) -> Operation:
    target = Target(name="w/0", down=down, ready_in_run=run)
    return Operation(id=f"{verb}-{number}", verb=verb, targets=(target,))  # type: ignore[arg-type]


def an_exit(run: int) -> LastExit:
    return LastExit(run=run, cause="crash", code=1, signal=None, at=0.0, evidence=("Traceback", "KeyError: 'x'"))


def test_two_restarts_are_one_and_both_end_when_the_later_run_is_ready() -> None:
    first, second = an_operation(run=4), an_operation(run=5, number=2)

    first = give_way(first, second)
    early = advance(first, {"w/0": a_worker(phase=Phase.READY, run=4)}, {})
    both = [advance(one, {"w/0": a_worker(phase=Phase.READY, run=5)}, {}) for one in (first, second)]

    assert early.state == "running"
    assert [one.state for one in both] == ["done", "done"]


def test_the_end_of_the_run_that_a_joined_restart_waited_for_is_no_failure_of_it() -> None:
    first = give_way(an_operation(run=4), an_operation(run=5, number=2))

    between = advance(first, {"w/0": a_worker(phase=Phase.RELEASING, run=4, last_exit=an_exit(4))}, {})

    assert between.state == "running"


def test_a_stop_supersedes_a_restart_and_its_caller_is_told_by_what() -> None:
    restart = give_way(an_operation(), an_operation("stop", down=True, number=2))

    assert restart.state == "failed"
    assert restart.targets[0].reason == "superseded by stop-2: it is stopped now"


def test_a_start_supersedes_a_stop() -> None:
    stop = give_way(an_operation("stop", down=True), an_operation("start", run=5, number=2))

    assert (stop.state, stop.targets[0].reason) == ("failed", "superseded by start-2: it is wanted up now")


def test_a_second_stop_joins_the_first() -> None:
    first = give_way(an_operation("stop", down=True), an_operation("stop", down=True, number=2))

    assert advance(first, {"w/0": a_worker(phase=Phase.STOPPED, goal=Goal.DOWN)}, {}).state == "done"


def test_a_command_for_other_workers_changes_nothing() -> None:
    restart = an_operation()
    other = Operation(id="stop-2", verb="stop", targets=(Target(name="w/1", down=True),))

    assert give_way(restart, other) is restart


def test_what_is_settled_stays_as_it_was_told() -> None:
    done = advance(an_operation(), {"w/0": a_worker(phase=Phase.READY)}, {})

    later = advance(
        give_way(done, an_operation("stop", down=True, number=2)), {"w/0": a_worker(phase=Phase.FAILED)}, {}
    )

    assert later == done


def test_a_failed_start_tells_the_reason_and_the_lines_that_prove_it() -> None:
    fallen = a_worker(phase=Phase.BACKOFF, reason="crash: ended with code 1; next start in 2 s", last_exit=an_exit(4))

    operation = advance(an_operation("start"), {"w/0": fallen}, {})

    target = operation.targets[0]
    assert (operation.state, target.phase, target.reason) == ("failed", "backoff", fallen.reason)
    assert target.evidence == ("Traceback", "KeyError: 'x'")


def test_the_end_of_an_earlier_run_is_neither_failure_nor_evidence() -> None:
    waiting = a_worker(phase=Phase.BLOCKED, run=3, last_exit=an_exit(3))

    assert advance(an_operation("start"), {"w/0": waiting}, {}).state == "running"


def test_a_worker_that_left_the_fleet_is_down_and_cannot_be_up() -> None:
    assert advance(an_operation("stop", down=True), {}, {}).state == "done"
    assert advance(an_operation("start"), {}, {}).targets[0].reason == "no longer in the fleet"


def test_each_change_that_a_client_should_see_has_a_version_of_its_own() -> None:
    operation = an_operation()

    starting = advance(operation, {"w/0": a_worker(phase=Phase.STARTING)}, {})
    same = advance(starting, {"w/0": a_worker(phase=Phase.STARTING)}, {})
    ready = advance(starting, {"w/0": a_worker(phase=Phase.READY)}, {})

    assert (starting.version, same.version, ready.version) == (2, 2, 3)


def test_a_command_waits_for_a_worker_that_comes_back_smaller() -> None:
    exit_ = LastExit(run=1, cause="gpu-oom-startup", code=1, signal=None, at=0.0)
    steps = (LadderStep(key="gpu-memory-utilization", before=0.9, value=0.87),)
    worker = Worker(name="a/0", pool="a", index=0, goal=Goal.UP, phase=Phase.BACKOFF, run=1, last_exit=exit_)
    target = Target(name="a/0", down=False, ready_in_run=1)

    states = [
        advance(Operation(id="apply-1", verb="apply", targets=(target,)), {"a/0": one}, {}).state
        for one in (worker, replace(worker, steps=steps), replace(worker, steps=steps, phase=Phase.FAILED))
    ]

    assert states == ["failed", "running", "failed"]


def test_a_command_gives_up_on_what_only_a_person_can_end() -> None:
    worker = Worker(name="a/0", pool="a", index=0, goal=Goal.UP, phase=Phase.BLOCKED)
    operation = Operation(id="start-1", verb="start", targets=(Target(name="a/0", down=False, ready_in_run=1),))

    kept_down = {"a/0": Wait(kind="gpu-closed", text="GPU 0 is cordoned")}
    over = advance(operation, {"a/0": worker}, {}, kept_down=kept_down)

    assert (over.state, over.targets[0].refused, over.targets[0].reason) == ("failed", True, "GPU 0 is cordoned")
