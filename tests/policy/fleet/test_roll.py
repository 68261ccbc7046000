"""A roll: one worker after the other, and back at the first that fails."""

from __future__ import annotations

from dataclasses import replace

from msgspec import structs
from tests.policy.fleet.test_ramp import a_pool, all_ready, an_end, started
from tests.policy.fleets import a_snapshot, applied

from gpuward.config.fleet import Fleet, Pool
from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.fleet.apply import more_than_a_roll, roll_outdated
from gpuward.policy.fleet.changes import compare
from gpuward.policy.fleet.operations import Operation, Target, advance
from gpuward.policy.fleet.roll import Roll
from gpuward.policy.fleet.step import FleetState, begin_roll, next_deadline_s, observe, settle, step
from gpuward.policy.placement.place import place
from gpuward.policy.placement.plan import Plan
from gpuward.policy.worker.definition import definition
from gpuward.policy.worker.life import (
    BecameReady,
    Effect,
    HaltAsked,
    LadderStep,
    Note,
    Phase,
    RunEnded,
    StopAsked,
    Terminate,
)

OLD, NEW = a_pool(), a_pool(max_model_len=4096)


def rolled(
    state: FleetState, now_s: float, pool: Pool = OLD, earlier: Pool | None = None
) -> tuple[FleetState, tuple[Effect, ...]]:
    return settle(begin_roll(state, pool, earlier), now_s)


def a_plan_of(state: FleetState, pool: Pool) -> Plan:
    return place((pool,), state.snapshot)


def terminated(effects: tuple[Effect, ...]) -> list[str]:
    return [effect.worker for effect in effects if isinstance(effect, Terminate)]


def told(effects: tuple[Effect, ...]) -> dict[str, str]:
    return {effect.kind: effect.reason for effect in effects if isinstance(effect, Note)}


def ended_and_started_again(state: FleetState, name: str, run: int, at_s: float) -> FleetState:
    exit_ = LastExit(run=run, cause="commanded", code=0, signal=None, at=0.0)
    state, _ = step(state, [(name, RunEnded(run=run, exit=exit_, permanent=False, reason="stopped"))], at_s)
    state, effects = observe(state, a_snapshot(at_s=at_s + 1), at_s + 1)
    assert started(effects) == [name]
    return state


def until_the_second_fails() -> tuple[FleetState, tuple[Effect, ...]]:
    """A roll from OLD to NEW: m/0 is ready with NEW, m/1 cannot start with it."""
    state, _ = rolled(all_ready(), 10.0, NEW, OLD)
    state = ended_and_started_again(state, "m/0", 1, 11.0)
    state, _ = step(state, [("m/0", BecameReady(2))], 13.0)
    state = ended_and_started_again(state, "m/1", 1, 14.0)
    return step(state, [("m/1", an_end(2))], 16.0)


def test_a_roll_restarts_one_after_the_other_on_the_same_gpus() -> None:
    state, asked = rolled(all_ready(), 10.0)
    order = []

    for number in range(4):
        at_s = 11.0 + 10 * number
        order += [effect.worker for effect in asked if isinstance(effect, Terminate)]
        state, _ = step(state, [(order[-1], an_end(1))], at_s)
        state, again = observe(state, a_snapshot(at_s=at_s + 1), at_s + 1)
        assert started(again) == [order[-1]]
        state, asked = step(state, [(order[-1], BecameReady(2))], at_s + 2)

    assert order == ["m/0", "m/1", "m/2", "m/3"]
    assert (asked, state.rolls) == ((), {})
    assert [worker.run_uuids for worker in state.workers.values()] == [(f"GPU-{index}",) for index in range(4)]


def test_a_roll_stops_at_the_first_failure_and_leaves_the_others_as_they_are() -> None:
    state, _ = rolled(all_ready(), 10.0)
    state, _ = step(state, [("m/0", an_end(1))], 11.0)
    state, _ = observe(state, a_snapshot(at_s=12.0), 12.0)
    targets = tuple(Target(name=f"m/{index}", down=False, ready_in_run=2) for index in range(4))

    state, effects = step(state, [("m/0", an_end(2))], 13.0)
    operation = advance(Operation(id="roll-1", verb="roll", targets=targets), state.workers, {})

    told = [effect.reason for effect in effects if isinstance(effect, Note)]
    assert [worker.phase for worker in state.workers.values()][1:] == [Phase.READY] * 3
    assert state.rolls == {}
    assert "the roll of m stops at m/0: there is no model x" in told[0]
    assert "; restarted: none; left as they are: m/1, m/2, m/3; nothing to roll back: all ran with this " in told[0]
    assert [target.state for target in operation.targets] == ["failed"] * 4
    assert operation.targets[1].reason == "left as it is: the roll stopped at m/0"


def test_a_roll_stops_also_where_the_failed_worker_would_be_started_again() -> None:
    state, _ = rolled(all_ready(), 10.0)
    state, _ = step(state, [("m/0", an_end(1))], 11.0)
    state, _ = observe(state, a_snapshot(at_s=12.0), 12.0)

    state, _ = step(state, [("m/0", an_end(2, permanent=False, cause="crash"))], 13.0)

    assert (state.workers["m/0"].phase, state.rolls) == (Phase.RELEASING, {})
    assert state.workers["m/1"].phase is Phase.READY


def test_a_roll_passes_over_a_worker_that_is_stopped_meanwhile() -> None:
    state, _ = rolled(all_ready(), 10.0)
    state, _ = step(state, [("m/1", StopAsked()), ("m/0", an_end(1))], 11.0)
    state, _ = observe(state, a_snapshot(at_s=12.0), 12.0)

    _, effects = step(state, [("m/0", BecameReady(2)), ("m/1", an_end(1))], 13.0)

    assert [effect for effect in effects if isinstance(effect, Terminate)] == [Terminate("m/2")]
    assert state.workers["m/1"].phase is Phase.STOPPING


def test_with_another_definition_the_first_failure_takes_back_who_had_got_it_and_nobody_else() -> None:
    state, effects = until_the_second_fails()
    ran = [worker.definition for worker in state.workers.values()]

    state, again = observe(state, a_snapshot(at_s=17.0), 17.0)
    state, next_ = step(state, [("m/1", BecameReady(3))], 18.0)
    state = ended_and_started_again(state, "m/0", 2, 19.0)
    state, done = step(state, [("m/0", BecameReady(3))], 21.0)

    new, old = definition(NEW), definition(OLD)
    assert told(effects)["roll-back"] == (
        "the roll of m stops at m/1: there is no model x; back to the earlier definition: m/1, m/0"
    )
    assert ran == [new, new, old, old]
    assert (started(again), terminated(next_), terminated(done)) == (["m/1"], ["m/0"], [])
    assert [worker.run for worker in state.workers.values()] == [3, 3, 1, 1]
    assert {worker.definition for worker in state.workers.values()} == {old}
    assert (state.pools["m"], state.rolls) == (OLD, {})
    assert told(done)["roll-back-done"].startswith("pool m is back at its earlier definition after at m/1")


def test_a_way_back_that_fails_too_stops_with_both_reasons() -> None:
    state, _ = until_the_second_fails()
    state, _ = observe(state, a_snapshot(at_s=17.0), 17.0)

    state, effects = step(state, [("m/1", an_end(3))], 18.0)

    reason = told(effects)["roll-stopped"]
    assert "the way back stops at m/1: there is no model x" in reason
    assert "first it was at m/1: there is no model x" in reason
    assert (state.rolls, state.pools["m"]) == ({}, OLD)


def test_what_a_ladder_had_lowered_is_undone_by_another_definition_and_there_again_after_the_way_back() -> None:
    lowered = (LadderStep(key="max-num-seqs", before=256, value=128),)
    state = all_ready()
    adapted = replace(state.workers["m/0"], steps=lowered)
    state, _ = rolled(replace(state, workers={**state.workers, "m/0": adapted}), 10.0, NEW, OLD)
    forward = state.workers["m/0"].steps
    state = ended_and_started_again(state, "m/0", 1, 11.0)

    state, _ = step(state, [("m/0", an_end(2))], 13.0)

    assert (forward, state.workers["m/0"].steps) == ((), lowered)


def test_a_worker_that_dies_before_its_turn_gets_the_new_definition_at_once_and_is_waited_for() -> None:
    state, _ = rolled(all_ready(), 10.0, NEW, OLD)
    state = ended_and_started_again(state, "m/0", 1, 11.0)
    state, _ = step(state, [("m/0", BecameReady(2))], 13.0)
    state, _ = step(state, [("m/2", an_end(1, permanent=False, cause="crash")), ("m/1", an_end(1))], 13.5)
    state, both = observe(state, a_snapshot(at_s=14.0), 14.0)
    assert started(both) == ["m/1", "m/2"]

    state, waits = step(state, [("m/1", BecameReady(2))], 41.0)
    state, goes_on = step(state, [("m/2", BecameReady(2))], 42.0)

    assert (terminated(waits), terminated(goes_on)) == ([], ["m/3"])
    assert state.rolls["m"].rolled == ("m/0", "m/1", "m/2")
    assert state.workers["m/2"].definition == definition(NEW)


def test_a_daemon_that_stops_in_the_middle_is_no_failure_of_the_roll() -> None:
    state, _ = rolled(all_ready(), 10.0, NEW, OLD)
    state = ended_and_started_again(state, "m/0", 1, 11.0)
    state, _ = step(replace(state, halting=True), [("m/0", HaltAsked())], 13.0)
    exit_ = LastExit(run=2, cause="commanded", code=0, signal=None, at=0.0)
    state, _ = step(state, [("m/0", RunEnded(run=2, exit=exit_, permanent=False, reason="stopped"))], 14.0)

    state, effects = settle(replace(state, halting=False), 100.0)

    assert told(effects) == {}
    assert not state.rolls["m"].goes_back


def test_a_restart_that_a_daemon_did_not_come_to_is_asked_for_by_the_next() -> None:
    before = all_ready()
    state, _ = rolled(before, 10.0, NEW, OLD)

    _, effects = settle(replace(before, rolls=state.rolls, pools=state.pools), 11.0)

    assert terminated(effects) == ["m/0"]


def test_a_fleet_that_says_otherwise_takes_the_place_of_a_roll_and_keeps_who_has_what_it_says() -> None:
    state, _ = rolled(all_ready(), 10.0, NEW, OLD)
    devices = {name: worker.device_uuids for name, worker in state.workers.items()}
    after, _ = applied(state, [OLD], Fleet(pools=(NEW,)), 11.0)
    running = {name: worker.definition for name, worker in state.workers.items() if worker.ending is None}

    changes = compare(Fleet(pools=(NEW,)), Fleet(pools=(OLD,)), devices, a_plan_of(state, OLD), running)

    assert (after.rolls["m"].left, after.rolls["m"].earlier) == (("m/1", "m/2", "m/3"), None)
    assert [change.action for change in changes] == ["restart", "keep", "keep", "keep"]
    assert changes[1].reason == "its process runs with this definition already"


def test_a_fleet_that_says_the_same_of_the_pool_lets_the_roll_go_on() -> None:
    state, _ = rolled(all_ready(), 10.0, NEW, OLD)

    state, _ = applied(state, [a_pool(max_model_len=4096, stop_timeout_s=5.0)], Fleet(pools=(NEW,)), 11.0)

    assert state.rolls["m"].earlier == OLD


def test_a_command_that_waits_for_a_roll_ends_when_it_is_back_and_says_what_became_of_each() -> None:
    state, _ = until_the_second_fails()
    targets = tuple(Target(name=f"m/{index}", down=False, ready_in_run=2) for index in range(4))
    begun = Operation(id="roll-1", verb="roll", targets=(replace(targets[0], state="done"), *targets[1:]))

    on_its_way = advance(begun, state.workers, state.rolls)
    state, _ = observe(state, a_snapshot(at_s=17.0), 17.0)
    state, _ = step(state, [("m/1", BecameReady(3))], 18.0)
    state = ended_and_started_again(state, "m/0", 2, 19.0)
    state, _ = step(state, [("m/0", BecameReady(3))], 21.0)
    over = advance(on_its_way, state.workers, state.rolls)

    assert (on_its_way.state, over.state) == ("running", "failed")
    assert [target.reason.partition(":")[0] for target in over.targets] == [
        "rolled back",
        "at m/1",
        "left as it is",
        "left as it is",
    ]
    assert over.targets[1].reason.endswith("now ready with its earlier definition")


def test_a_command_that_waits_for_a_roll_ends_when_another_takes_its_place() -> None:
    targets = tuple(Target(name=f"m/{index}", down=False, ready_in_run=2) for index in range(4))

    over = advance(Operation(id="roll-1", verb="roll", targets=targets), all_ready().workers, {})

    assert {target.reason for target in over.targets} == {"the roll has ended without it"}


def test_a_file_that_changes_more_than_the_pool_is_no_roll() -> None:
    other = a_pool(name="n")
    state = all_ready()
    devices = {name: worker.device_uuids for name, worker in state.workers.items()}
    old = Fleet(pools=(OLD,))
    fewer = a_pool(workers=3)
    changes = compare(old, Fleet(pools=(fewer,)), devices, a_plan_of(state, fewer))

    beside = more_than_a_roll("m", old, Fleet(pools=(NEW, other)), ())
    scaled = more_than_a_roll("m", old, Fleet(pools=(fewer,)), changes)

    assert beside is not None
    assert scaled is not None
    assert beside.message.startswith("pool 'n' changes too: a roll changes pool 'm' alone")
    assert scaled.message.startswith("m/3: stop, pool 'm' goes from 4 to 3 workers: ")
    assert more_than_a_roll("m", old, Fleet(pools=(NEW,)), ()) is None


def test_a_changed_fleet_reaches_ready_workers_one_after_the_other_and_has_a_way_back() -> None:
    state, effects = applied(all_ready(), [NEW], Fleet(pools=(OLD,)), 10.0)

    assert terminated(effects) == ["m/0"]
    assert state.rolls["m"].earlier == OLD
    assert state.rolls["m"].asked == "max-model-len changed"


def test_as_many_are_changed_at_once_as_may_be_unavailable() -> None:
    new = a_pool(max_model_len=4096, max_unavailable=3)

    _, effects = applied(all_ready(), [new], Fleet(pools=(OLD,)), 10.0)

    assert terminated(effects) == ["m/0", "m/1", "m/2"]


def test_a_pool_without_a_ready_worker_is_changed_at_once() -> None:
    state, _ = applied(FleetState(snapshot=a_snapshot()), [OLD])

    state, effects = applied(state, [NEW], Fleet(pools=(OLD,)), 10.0)

    assert (terminated(effects), state.rolls) == (["m/0"], {})


def test_a_failed_worker_of_an_engine_is_the_first_to_try_a_definition_and_if_it_fails_again_none_is_touched() -> None:
    state, _ = step(all_ready(), [("m/3", an_end(1))], 9.0)
    state, _ = applied(state, [NEW], Fleet(pools=(OLD,)), 10.0)
    state, _ = observe(state, a_snapshot(at_s=11.0), 11.0)

    state, effects = step(state, [("m/3", an_end(2))], 12.0)

    assert terminated(effects) == []
    assert "m/0 was not touched: m/3 started first with this definition and has failed" in told(effects)["roll-back"]


def test_a_failed_worker_gets_the_new_definition_at_once_and_nobody_goes_back_if_it_fails_again() -> None:
    old = a_pool(engine="command", command=("x",))
    new = structs.replace(old, env={"A": "1"})
    state, _ = applied(FleetState(snapshot=a_snapshot()), [old])
    state, _ = step(state, [(f"m/{index}", BecameReady(1)) for index in range(4)], 1.0)
    state, _ = step(state, [("m/3", an_end(1))], 9.0)
    state, effects = applied(state, [new], Fleet(pools=(old,)), 10.0)
    begun = (state.workers["m/3"].phase, terminated(effects))

    state, _ = observe(state, a_snapshot(at_s=11.0), 11.0)
    state, effects = step(state, [("m/3", an_end(2))], 12.0)

    assert begun == (Phase.BLOCKED, [])
    assert (terminated(effects), state.rolls["m"].goes_back) == (["m/0"], False)


def test_the_only_ready_worker_is_not_taken_away_until_another_is_ready() -> None:
    state, _ = applied(FleetState(snapshot=a_snapshot()), [a_pool(workers=2)])
    state, _ = step(state, [("m/0", BecameReady(1))], 1.0)

    state, first = rolled(state, 2.0, a_pool(workers=2))
    state, then = step(state, [("m/1", BecameReady(1))], 3.0)

    assert (terminated(first), terminated(then)) == ([], ["m/0"])


def test_the_only_ready_worker_of_a_pool_whose_others_have_failed_is_taken_by_force_only() -> None:
    two = a_pool(workers=2)
    state, _ = applied(FleetState(snapshot=a_snapshot()), [two])
    state, _ = step(state, [("m/0", BecameReady(1))], 1.0)
    state, _ = step(state, [("m/1", an_end(1))], 2.0)
    ended = replace(state, workers={**state.workers, "m/1": replace(state.workers["m/1"], device_uuids=())})

    asked, effects = rolled(ended, 3.0, two)
    forced, by_force = settle(begin_roll(ended, two, force=True), 3.0)

    assert (terminated(effects), terminated(by_force)) == ([], ["m/0"])
    assert (
        "m/0 was not touched: it is the only ready worker of the pool (m/1 would not come" in asked.stopped_rolls["m"]
    )
    assert forced.stopped_rolls == {}


def test_a_worker_counts_as_rolled_only_when_it_has_been_ready_for_a_while() -> None:
    new = a_pool(max_model_len=4096, min_ready_s=5.0)
    state, _ = rolled(all_ready(), 10.0, new, OLD)
    state = ended_and_started_again(state, "m/0", 1, 11.0)

    state, early = step(state, [("m/0", BecameReady(2))], 13.0)
    look_s = next_deadline_s(state, 13.0)
    state, late = settle(state, 18.0)

    assert (terminated(early), look_s, terminated(late)) == ([], 18.0, ["m/1"])


def test_one_that_was_rolled_and_dies_later_takes_all_back() -> None:
    state, _ = rolled(all_ready(), 10.0, NEW, OLD)
    state = ended_and_started_again(state, "m/0", 1, 11.0)
    state, _ = step(state, [("m/0", BecameReady(2))], 13.0)
    state = ended_and_started_again(state, "m/1", 1, 14.0)

    state, effects = step(state, [("m/0", an_end(2, permanent=False, cause="crash"))], 16.0)

    assert told(effects)["roll-back"].startswith("the roll of m stops at m/0: there is no model x; back")
    assert state.pools["m"] == OLD


def test_a_worker_that_would_not_come_back_is_a_failure_before_it_is_touched() -> None:
    state, _ = rolled(all_ready(), 10.0, NEW, OLD)
    state = ended_and_started_again(state, "m/0", 1, 11.0)
    state = replace(state, closed={"GPU-1": "GPU 1 is cordoned (by command)"})

    state, effects = step(state, [("m/0", BecameReady(2))], 13.0)

    assert state.workers["m/1"].phase is Phase.READY
    assert "m/1 was not touched: m/1 would not come back: GPU 1 is cordoned" in told(effects)["roll-back"]
    assert terminated(effects) == ["m/0"]


def test_a_roll_of_an_earlier_version_goes_on() -> None:
    state, _ = rolled(all_ready(), 10.0, NEW, OLD)
    of_then = Roll(left=("m/1", "m/2", "m/3"), current="m/0", ready_in_run=2, earlier=OLD)
    state = ended_and_started_again(replace(state, rolls={"m": of_then}), "m/0", 1, 11.0)

    _, effects = step(state, [("m/0", BecameReady(2))], 13.0)

    assert terminated(effects) == ["m/1"]


def test_workers_that_change_places_are_all_stopped_first() -> None:
    old, new = a_pool(workers=2, gpus=(0, 1)), a_pool(workers=2, gpus=(1, 0))
    state, _ = applied(FleetState(snapshot=a_snapshot()), [old])
    state, _ = step(state, [("m/0", BecameReady(1))], 1.0)
    state, _ = step(state, [("m/1", BecameReady(1))], 2.0)

    state, effects = applied(state, [new], Fleet(pools=(old,)), 3.0)

    assert (terminated(effects), state.rolls) == (["m/0", "m/1"], {})


def test_a_worker_that_moved_with_another_definition_goes_back_to_the_gpus_that_it_had() -> None:
    old = a_pool(workers=2, gpus=(0, 1))
    new = a_pool(workers=2, gpus=(2, 3), max_model_len=4096)
    state, _ = applied(FleetState(snapshot=a_snapshot()), [old])
    for index in range(2):
        state, _ = step(state, [(f"m/{index}", BecameReady(1))], 1.0)
    state, _ = applied(state, [new], Fleet(pools=(old,)), 2.0)
    state = ended_and_started_again(state, "m/0", 1, 3.0)
    moved = state.workers["m/0"].run_uuids

    state, _ = step(state, [("m/0", an_end(2))], 5.0)

    assert moved == ("GPU-2",)
    assert state.workers["m/0"].device_uuids == ("GPU-0",)
    assert (state.workers["m/1"].phase, state.pools["m"]) == (Phase.READY, old)


def test_runs_that_are_not_what_the_fleet_says_are_replaced_in_turn_and_have_a_way_back() -> None:
    state = all_ready()
    state = replace(state, pools={"m": NEW})
    reasons = dict.fromkeys(state.workers, "max-model-len changed")

    state, effects = roll_outdated(state, reasons, dict.fromkeys(state.workers, OLD), 10.0)

    assert terminated(effects) == ["m/0"]
    assert state.rolls["m"].earlier == OLD


def test_a_pool_that_grows_while_it_is_changed_starts_the_new_worker_first() -> None:
    old, new = a_pool(workers=2), a_pool(workers=3, max_model_len=4096)
    state, _ = applied(FleetState(snapshot=a_snapshot()), [old])
    for index in range(2):
        state, _ = step(state, [(f"m/{index}", BecameReady(1))], 1.0)

    state, effects = applied(state, [new], Fleet(pools=(old,)), 2.0)
    state, then = step(state, [("m/2", BecameReady(1))], 3.0)

    assert (started(effects), terminated(effects), terminated(then)) == (["m/2"], [], ["m/0"])


def test_a_new_worker_that_fails_takes_the_change_back_before_anybody_is_stopped() -> None:
    old, new = a_pool(workers=2), a_pool(workers=3, max_model_len=4096)
    state, _ = applied(FleetState(snapshot=a_snapshot()), [old])
    for index in range(2):
        state, _ = step(state, [(f"m/{index}", BecameReady(1))], 1.0)
    state, _ = applied(state, [new], Fleet(pools=(old,)), 2.0)

    state, effects = step(state, [("m/2", an_end(1))], 3.0)

    assert (terminated(effects), state.rolls["m"].goes_back) == ([], True)
    assert state.pools["m"] == a_pool(workers=3)
