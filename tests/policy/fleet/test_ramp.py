"""The first worker of a pool alone, then the rest."""

from __future__ import annotations

from tests.policy.fleets import a_snapshot, applied

from gpuward.config.fleet import Fleet, Pool
from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.fleet.operations import Operation, Target, advance
from gpuward.policy.fleet.step import FleetState, observe, step
from gpuward.policy.worker.life import BecameReady, Effect, Phase, RunEnded, StartRun, StopAsked


def a_pool(**known: object) -> Pool:
    return Pool(**{"name": "m", "model": "m", "workers": 4, "gpus_per_worker": 1, "min_ready_s": 0.0, **known})  # type: ignore[arg-type]


def started(effects: tuple[Effect, ...]) -> list[str]:
    return [effect.worker for effect in effects if isinstance(effect, StartRun)]


def an_end(run: int, *, permanent: bool = True, cause: str = "config-error") -> RunEnded:
    exit_ = LastExit(run=run, cause=cause, code=1, signal=None, at=0.0)
    return RunEnded(run=run, exit=exit_, permanent=permanent, reason="there is no model x")


def all_ready() -> FleetState:
    state, _ = applied(FleetState(snapshot=a_snapshot()), [a_pool()])
    for index in range(4):
        state, _ = step(state, [(f"m/{index}", BecameReady(1))], 1.0)
    return state


def test_the_first_worker_starts_alone_and_the_rest_together_once_it_is_ready() -> None:
    state, first = applied(FleetState(snapshot=a_snapshot()), [a_pool()])

    waiting = state.workers["m/1"].reason
    _, rest = step(state, [("m/0", BecameReady(1))], 1.0)

    assert started(first) == ["m/0"]
    assert waiting == "waits for m/0 (starting): the first worker of a pool starts alone"
    assert started(rest) == ["m/1", "m/2", "m/3"]


def test_a_new_definition_starts_where_the_old_run_is_gone_first_whoever_still_stops() -> None:
    state, _ = applied(all_ready(), [a_pool(env={"A": "2"}, update="all")], old=Fleet(pools=(a_pool(),)), now_s=2.0)
    assert {worker.phase for worker in state.workers.values()} == {Phase.STOPPING}

    state, _ = step(state, [("m/2", an_end(1, permanent=False, cause="commanded"))], 3.0)
    state, effects = observe(state, a_snapshot(at_s=4.0), 4.0)

    assert started(effects) == ["m/2"]


def test_a_first_worker_that_is_stopped_since_it_took_too_long_is_waited_for() -> None:
    state, _ = applied(FleetState(snapshot=a_snapshot()), [a_pool(start_timeout_s=5.0)])

    state, effects = step(state, [], 6.0)

    assert state.workers["m/0"].phase is Phase.STOPPING
    assert started(effects) == []
    assert state.workers["m/1"].reason == "waits for m/0 (stopping): the first worker of a pool starts alone"


def test_max_parallel_starts_bounds_the_rest() -> None:
    state, _ = applied(FleetState(snapshot=a_snapshot()), [a_pool(max_parallel_starts=2)])

    state, two = step(state, [("m/0", BecameReady(1))], 1.0)
    _, last = step(state, [("m/1", BecameReady(1))], 2.0)

    assert (started(two), started(last)) == (["m/1", "m/2"], ["m/3"])
    assert state.workers["m/3"].reason == "waits for its turn: 2 of the pool start now, max-parallel-starts is 2"


def test_a_first_worker_that_cannot_start_holds_the_rest_with_its_reason() -> None:
    state, _ = applied(FleetState(snapshot=a_snapshot()), [a_pool()])

    state, effects = step(state, [("m/0", an_end(1))], 1.0)

    assert started(effects) == []
    assert [state.workers[f"m/{index}"].phase for index in range(4)] == [Phase.FAILED] + [Phase.BLOCKED] * 3
    assert state.workers["m/3"].reason.startswith("held: m/0 started first and has failed: there is no model x")


def test_a_command_that_waits_for_held_workers_ends_as_failed() -> None:
    state, _ = applied(FleetState(snapshot=a_snapshot()), [a_pool()])
    state, _ = step(state, [("m/0", an_end(1))], 1.0)
    targets = tuple(Target(name=f"m/{index}", down=False, ready_in_run=1) for index in range(4))

    operation = advance(Operation(id="apply-1", verb="apply", targets=targets), state.workers, {})

    assert operation.state == "failed"


def test_a_first_worker_with_a_broken_gpu_or_stopped_by_command_holds_nobody() -> None:
    state, _ = applied(FleetState(snapshot=a_snapshot()), [a_pool()])

    _, broken = step(state, [("m/0", an_end(1, cause="gpu-hardware"))], 1.0)
    _, stopped = step(state, [("m/0", StopAsked())], 1.0)

    assert (started(broken), started(stopped)) == (["m/1"], ["m/1"])


def test_a_worker_of_a_pool_that_was_ready_once_comes_back_without_waiting_for_others() -> None:
    state = all_ready()

    state, _ = step(state, [(f"m/{index}", an_end(1, permanent=False, cause="crash")) for index in range(4)], 10.0)
    state, _ = observe(state, a_snapshot(at_s=10.1), 10.1)
    _, effects = observe(state, a_snapshot(at_s=20.0), 20.0)

    assert started(effects) == ["m/0", "m/1", "m/2", "m/3"]


def test_another_definition_is_tried_with_one_worker_first() -> None:
    state = all_ready()
    state, _ = applied(state, [a_pool(max_model_len=4096, update="all")], Fleet(pools=(a_pool(),)), 10.0)

    for index in range(4):
        state, _ = step(state, [(f"m/{index}", an_end(1))], 11.0)
    _, effects = observe(state, a_snapshot(at_s=12.0), 12.0)

    assert started(effects) == ["m/0"]
