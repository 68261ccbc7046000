"""All workers together: order, waiting, applying."""

from __future__ import annotations

from dataclasses import replace

from msgspec import structs
from tests.policy.fleets import GIB, a_snapshot, applied

from gpuward.config.fleet import Fleet, Pool
from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.fleet.step import FleetState, halt, next_deadline_s, observe, step
from gpuward.policy.worker.life import (
    BecameReady,
    Forget,
    Goal,
    Phase,
    RestartAsked,
    RunEnded,
    StartAsked,
    StartRun,
    StopAsked,
    Terminate,
)


def a_pool(name: str = "decode", **known: object) -> Pool:
    return Pool(**{"name": name, "model": "m", "gpus_per_worker": 1, **known})  # type: ignore[arg-type]


def ended(run: int, at: float = 1.0) -> RunEnded:
    exit_ = LastExit(run=run, cause="crash", code=1, signal=None, at=at)
    return RunEnded(run=run, exit=exit_, permanent=False, reason="crash")


def test_applying_a_fleet_starts_every_worker_that_has_room() -> None:
    pool = a_pool(workers=3, engine="command", command=("x",))

    state, effects = applied(FleetState(snapshot=a_snapshot()), [pool])

    assert [effect for effect in effects if isinstance(effect, StartRun)] == [
        StartRun("decode/0", 1),
        StartRun("decode/1", 1),
        StartRun("decode/2", 1),
    ]
    assert [worker.run_uuids for worker in state.workers.values()] == [("GPU-0",), ("GPU-1",), ("GPU-2",)]


def test_a_worker_waits_for_memory_and_names_what_is_missing() -> None:
    state, effects = applied(FleetState(snapshot=a_snapshot(used={0: 30 * GIB})), [a_pool(workers=1)])

    assert StartRun("decode/0", 1) not in effects
    assert state.workers["decode/0"].phase is Phase.BLOCKED
    assert "claim is 72.0 GiB" in state.workers["decode/0"].reason
    assert "free are 50.0 GiB" in state.workers["decode/0"].reason

    _, effects = observe(state, a_snapshot(at_s=5.0), 5.0)

    assert effects == (StartRun("decode/0", 1),)


def test_a_stale_inventory_starts_no_gpu_worker_and_every_other_one() -> None:
    router = Pool(name="router", engine="command", command=("router",), gpus_per_worker=0)
    state, _ = applied(FleetState(snapshot=a_snapshot(used={0: 79 * GIB})), [a_pool(), router])
    stale = replace(a_snapshot(), state="stale", reason="NVML has not answered for 12 s")

    state, _ = observe(state, stale, 20.0)

    assert state.workers["router/0"].phase is Phase.STARTING
    assert state.workers["decode/0"].phase is Phase.BLOCKED
    assert "NVML has not answered for 12 s" in state.workers["decode/0"].reason


def test_dependents_start_when_every_worker_they_wait_for_is_ready() -> None:
    pools = [
        a_pool("prefill", workers=2, engine="command", command=("x",)),
        a_pool("decode", workers=1, depends_on=("prefill",)),
    ]
    state, _ = applied(FleetState(snapshot=a_snapshot()), pools)

    state, after_one = step(state, [("prefill/0", BecameReady(1))], 1.0)
    waiting = state.workers["decode/0"].reason
    state, after_both = step(state, [("prefill/1", BecameReady(1))], 2.0)

    assert "waits for prefill/1 to be ready" in waiting
    assert (after_one, after_both) == ((), (StartRun("decode/0", 1),))


def test_a_dependent_of_a_failed_worker_says_so() -> None:
    pools = [a_pool("prefill"), a_pool("decode", depends_on=("prefill",))]
    state, _ = applied(FleetState(snapshot=a_snapshot()), pools)
    failure = replace(ended(1), permanent=True, reason="config-error: no such model")

    state, _ = step(state, [("prefill/0", failure)], 1.0)

    assert state.workers["prefill/0"].phase is Phase.FAILED
    assert "prefill/0, which has failed: config-error: no such model" in state.workers["decode/0"].reason


def test_stopping_everything_stops_dependents_first() -> None:
    pools = [a_pool("prefill"), a_pool("decode", depends_on=("prefill",))]
    state, _ = applied(FleetState(snapshot=a_snapshot()), pools)
    state, _ = step(state, [("prefill/0", BecameReady(1))], 1.0)
    state, _ = step(state, [("decode/0", BecameReady(1))], 2.0)

    state, first = halt(state, 3.0)
    reason = state.workers["prefill/0"].reason
    state, second = step(state, [("decode/0", ended(1))], 4.0)

    assert (first, second) == ((Terminate("decode/0"),), (Terminate("prefill/0"),))
    assert "waits for decode/0 to stop first" in reason


def test_on_a_shared_gpu_one_worker_starts_at_a_time() -> None:
    pool = a_pool(workers=3, share=True, gpus=(0,), gpu_memory_utilization=0.3, engine="command", command=("x",))
    state, effects = applied(FleetState(snapshot=a_snapshot()), [pool])
    assert effects[-1] == StartRun("decode/0", 1)
    assert "one start at a time on a shared GPU" in state.workers["decode/1"].reason

    state, effects = step(state, [("decode/0", BecameReady(1))], 1.0)

    assert effects == (StartRun("decode/1", 1),)


def a_shared_pool(name: str, **known: object) -> Pool:
    return a_pool(name, share=True, gpus=(0,), gpu_memory_utilization=0.3, **known)


def test_while_a_neighbour_starts_a_worker_on_its_gpu_is_not_stopped() -> None:
    pools = [a_shared_pool("a"), a_shared_pool("b")]
    state, _ = applied(FleetState(snapshot=a_snapshot()), pools)
    state, _ = step(state, [("a/0", BecameReady(1))], 1.0)
    assert state.workers["b/0"].phase is Phase.STARTING

    state, none = step(state, [("a/0", StopAsked())], 2.0)
    waits = state.workers["a/0"].reason
    state, stopped = step(state, [("b/0", BecameReady(1))], 3.0)

    assert none == ()
    assert waits == ("stopped by command; waits for b/0 to be ready first: it measures a GPU that both have")
    assert stopped == (Terminate("a/0"),)


def test_a_stop_waits_for_a_neighbour_that_starts_only_so_long() -> None:
    pools = [a_shared_pool("a"), a_shared_pool("b")]
    state, _ = applied(FleetState(snapshot=a_snapshot()), pools)
    state, _ = step(state, [("a/0", BecameReady(1))], 1.0)
    state, _ = step(state, [("a/0", StopAsked())], 2.0)

    _, early = step(state, [], 301.9)
    _, late = step(state, [], 302.0)

    assert (early, late) == ((), (Terminate("a/0"),))


def test_a_daemon_that_stops_waits_for_no_start() -> None:
    pools = [a_shared_pool("a"), a_shared_pool("b")]
    state, _ = applied(FleetState(snapshot=a_snapshot()), pools)
    state, _ = step(state, [("a/0", BecameReady(1))], 1.0)

    _, effects = halt(state, 2.0)

    assert set(effects) == {Terminate("a/0"), Terminate("b/0")}


def test_on_a_shared_gpu_who_waits_longest_starts_first() -> None:
    pools = [a_shared_pool("a"), a_shared_pool("b"), a_shared_pool("c")]
    state, _ = applied(FleetState(snapshot=a_snapshot()), pools)
    state, _ = step(state, [("b/0", StopAsked())], 1.0)
    state, _ = step(state, [("b/0", StartAsked())], 2.0)

    state, effects = step(state, [("a/0", BecameReady(1))], 3.0)

    assert effects == (StartRun("c/0", 1),)
    assert "waits for c/0 (starting)" in state.workers["b/0"].reason


def test_who_waits_longest_holds_nobody_up_where_it_cannot_start() -> None:
    pools = [a_shared_pool("a"), a_shared_pool("c", depends_on=("x",)), a_shared_pool("b"), a_pool("x", gpus=(1,))]
    state, _ = applied(FleetState(snapshot=a_snapshot()), pools)
    state, _ = step(state, [("b/0", StopAsked())], 1.0)
    state, _ = step(state, [("b/0", StartAsked())], 2.0)

    _, effects = step(state, [("a/0", BecameReady(1))], 3.0)

    assert effects == (StartRun("b/0", 1),)


def test_after_a_run_the_next_one_waits_for_a_sample_taken_later() -> None:
    state, _ = applied(FleetState(snapshot=a_snapshot()), [a_pool()])
    state, _ = step(state, [("decode/0", BecameReady(1))], 1.0)
    state, _ = step(state, [("decode/0", ended(1))], 10.0)
    assert state.workers["decode/0"].phase is Phase.RELEASING

    too_old, _ = observe(state, a_snapshot(at_s=9.9), 10.5)
    fresh, _ = observe(state, a_snapshot(at_s=10.1), 10.5)
    restarted, effects = step(fresh, [], 12.0)

    assert too_old.workers["decode/0"].phase is Phase.RELEASING
    assert fresh.workers["decode/0"].phase is Phase.BACKOFF
    assert restarted.workers["decode/0"].phase is Phase.STARTING
    assert effects == (StartRun("decode/0", 2),)


def test_memory_that_does_not_come_back_is_waited_for_in_the_open() -> None:
    state, _ = applied(FleetState(snapshot=a_snapshot()), [a_pool()])
    state, _ = step(state, [("decode/0", BecameReady(1))], 1.0)
    state, _ = step(state, [("decode/0", ended(1))], 10.0)

    state, _ = observe(state, a_snapshot(at_s=70.0, used={0: 60 * GIB}), 70.0)

    assert state.workers["decode/0"].phase is Phase.BLOCKED
    assert "waits for memory on GPU 0" in state.workers["decode/0"].reason


def test_changing_only_the_number_of_workers_keeps_the_survivors() -> None:
    old = [a_pool(workers=3)]
    state, _ = applied(FleetState(snapshot=a_snapshot()), old)
    for index in range(3):
        state, _ = step(state, [(f"decode/{index}", BecameReady(1))], 1.0)

    state, effects = applied(state, [a_pool(workers=2)], Fleet(pools=tuple(old)), 2.0)
    gone, forgotten = step(state, [("decode/2", ended(1))], 3.0)

    assert effects == (Terminate("decode/2"),)
    assert [worker.phase for worker in gone.workers.values()] == [Phase.READY, Phase.READY]
    assert forgotten == (Forget("decode/2"),)


def test_a_changed_definition_restarts_what_runs_and_leaves_what_is_stopped() -> None:
    old = [a_pool(workers=2)]
    state, _ = applied(FleetState(snapshot=a_snapshot()), old)
    state, _ = step(state, [("decode/0", BecameReady(1)), ("decode/1", StopAsked())], 1.0)
    state, _ = step(state, [("decode/1", ended(1))], 1.5)

    state, effects = applied(state, [a_pool(workers=2, max_model_len=4096)], Fleet(pools=tuple(old)), 2.0)

    assert effects == (Terminate("decode/0"),)
    assert state.workers["decode/1"].phase is Phase.STOPPED
    assert state.workers["decode/1"].goal is Goal.DOWN


def test_a_worker_moved_to_another_gpu_waits_until_that_is_left() -> None:
    old = [a_pool("a", gpus=(0,)), a_pool("b", gpus=(1,))]
    state, _ = applied(FleetState(snapshot=a_snapshot(2)), old)
    state, _ = step(state, [("a/0", BecameReady(1)), ("b/0", BecameReady(1))], 1.0)

    swapped = [a_pool("a", gpus=(1,)), a_pool("b", gpus=(0,))]
    state, _ = applied(state, swapped, Fleet(pools=tuple(old)), 2.0)
    state, _ = step(state, [("a/0", ended(1))], 3.0)
    state, effects = observe(state, a_snapshot(2, at_s=4.0), 4.0)
    assert not any(isinstance(effect, StartRun) for effect in effects)
    assert "waits for b/0" in state.workers["a/0"].reason

    state, _ = step(state, [("b/0", ended(1))], 5.0)
    state, effects = observe(state, a_snapshot(2, at_s=6.0), 6.0)

    assert set(effects) == {StartRun("a/0", 2), StartRun("b/0", 2)}


def test_nothing_starts_while_the_daemon_stops() -> None:
    state, _ = applied(FleetState(snapshot=a_snapshot(used={0: 79 * GIB})), [a_pool()])
    state, _ = halt(state, 1.0)

    state, effects = observe(state, a_snapshot(at_s=2.0), 2.0)

    assert effects == ()
    assert state.workers["decode/0"].phase is Phase.STOPPED


def test_the_nearest_deadline_lies_ahead_or_is_none() -> None:
    state, _ = applied(FleetState(snapshot=a_snapshot()), [a_pool(start_timeout_s=60)])

    starting = next_deadline_s(state, 0.0)
    state, _ = step(state, [("decode/0", BecameReady(1))], 1.0)
    ready = next_deadline_s(state, 1.0)

    assert (starting, ready) == (60.0, None)


def test_an_event_for_a_worker_that_is_gone_is_ignored() -> None:
    state = FleetState(snapshot=a_snapshot())

    assert step(state, [("nobody/0", StartAsked())], 1.0) == (state, ())


def test_a_worker_that_leaves_serves_until_one_of_those_that_stay_does() -> None:
    pool = Pool(name="m", engine="command", command=("x",), workers=2, gpus_per_worker=0)
    state, _ = applied(FleetState(snapshot=a_snapshot()), [pool])
    state, _ = step(state, [("m/1", BecameReady(1))], 1.0)

    one = structs.replace(pool, workers=1)
    state, first = applied(state, [one], Fleet(pools=(pool,)), 2.0)
    serves = state.workers["m/1"].phase
    state, then = step(state, [("m/0", BecameReady(1))], 3.0)

    assert (serves, first) == (Phase.READY, ())
    assert [effect for effect in then if isinstance(effect, Terminate)] == [Terminate("m/1")]


def test_a_worker_that_leaves_and_is_wanted_again_before_it_went_just_stays() -> None:
    pool = Pool(name="m", engine="command", command=("x",), workers=2, gpus_per_worker=0)
    state, _ = applied(FleetState(snapshot=a_snapshot()), [pool])
    state, _ = step(state, [("m/1", BecameReady(1))], 1.0)
    one = structs.replace(pool, workers=1)
    state, _ = applied(state, [one], Fleet(pools=(pool,)), 2.0)

    state, effects = applied(state, [pool], Fleet(pools=(one,)), 3.0)

    assert (state.workers["m/1"].phase, state.workers["m/1"].run, effects) == (Phase.READY, 1, ())


def test_a_worker_that_leaves_does_not_keep_the_gpus_that_one_that_stays_waits_for() -> None:
    two = a_pool("m", workers=2, engine="command", command=("x",), gpus=(0, 1))
    state, _ = applied(FleetState(snapshot=a_snapshot()), [two])
    state, _ = step(state, [("m/1", BecameReady(1)), ("m/0", ended(1))], 1.0)

    one = structs.replace(two, workers=1, gpus=(1,))
    state, _ = applied(state, [one], Fleet(pools=(two,)), 2.0)
    _, effects = observe(state, a_snapshot(at_s=10.0), 10.0)

    assert [effect for effect in effects if isinstance(effect, Terminate)] == [Terminate("m/1")]


def test_a_worker_that_leaves_the_fleet_is_not_brought_back_by_a_command() -> None:
    state, _ = applied(FleetState(snapshot=a_snapshot()), [Pool(name="m", model="m", workers=2, gpus_per_worker=1)])
    leaving = replace(state.workers["m/1"], removed=True, goal=Goal.DOWN)

    state = replace(state, workers={**state.workers, "m/1": leaving})
    after, _ = step(state, [("m/1", StartAsked()), ("m/1", RestartAsked("by command"))], 1.0)

    assert "m/1" not in after.workers or after.workers["m/1"].goal is Goal.DOWN
