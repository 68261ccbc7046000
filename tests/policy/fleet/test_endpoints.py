"""A worker leaves the endpoints before its SIGTERM; one that nobody knows, or that is broken, waits for nothing."""

from __future__ import annotations

from dataclasses import replace

from gpuward.config.fleet import Pool
from gpuward.policy.fleet import step as policy
from gpuward.policy.fleet.endpoints import Listing, departure, listed
from gpuward.policy.fleet.step import FleetState
from gpuward.policy.gpus.inventory import Snapshot
from gpuward.policy.worker.life import Goal, Hung, Kill, Phase, StopAsked, Terminate, Worker

POOL = Pool(name="m", model="m", gpus_per_worker=0)
READY = Worker(name="m/0", pool="m", index=0, goal=Goal.UP, phase=Phase.READY, run=1, ready_since_s=5.0)


def a_state(listing: Listing | None, *workers: Worker) -> FleetState:
    by_name = {worker.name: worker for worker in workers or (READY,)}
    return FleetState(
        snapshot=Snapshot(state="ok", gpus=(), provider="sim", taken_at_s=0.0),
        workers=by_name,
        pools={"m": POOL},
        listing=listing,
    )


def test_a_stop_waits_until_proxies_were_told_and_have_settled() -> None:
    state = a_state(Listing(settle_s=2.0, told=frozenset({"m/0"})))

    state, asked = policy.step(state, [("m/0", StopAsked())], 10.0)
    draining = state.workers["m/0"]
    assert state.listing is not None
    state, told = policy.relisted(state, 11.0, listing=state.listing.as_told((), state.workers, 11.0))
    look_s = policy.next_deadline_s(state, 11.0)
    state, early = policy.step(state, [], 12.9)
    state, late = policy.step(state, [], 13.0)

    assert (draining.phase, asked, told, early) == (Phase.DRAINING, (), (), ())
    assert "is being taken out of the endpoints" in draining.reason
    assert look_s == 13.0
    assert (late, state.workers["m/0"].phase) == ((Terminate("m/0"),), Phase.STOPPING)


def test_without_endpoints_the_sigterm_follows_at_once() -> None:
    _, effects = policy.step(a_state(None), [("m/0", StopAsked())], 10.0)

    assert effects == (Terminate("m/0"),)


def test_proxies_that_are_never_told_hold_nobody_for_ever() -> None:
    state, _ = policy.step(a_state(Listing(settle_s=2.0)), [("m/0", StopAsked())], 10.0)

    _, effects = policy.step(state, [], 310.0)

    assert effects == (Terminate("m/0"),)


def test_a_daemon_that_stops_takes_everybody_out_first() -> None:
    state = a_state(Listing(settle_s=2.0, told=frozenset({"m/0"})))

    state, effects = policy.halt(state, 10.0)

    assert effects == ()
    assert listed(state.workers.values(), state.pools) == {"m": ()}


def test_a_worker_that_hangs_is_killed_without_waiting() -> None:
    state = a_state(Listing(settle_s=2.0, told=frozenset({"m/0"})))

    _, effects = policy.step(state, [("m/0", Hung(1, "frozen"))], 10.0)

    assert effects == (Kill("m/0"),)


def test_a_worker_that_nobody_was_told_of_may_go_at_once_and_one_that_is_being_told_may_not() -> None:
    listing = Listing(settle_s=2.0, told=frozenset())
    draining = replace(READY, phase=Phase.DRAINING)

    assert departure(listing, draining, 10.0) is None
    assert departure(listing.telling(["m/0"]), draining, 10.0) is not None


def test_a_worker_that_is_listed_again_has_not_left() -> None:
    listing = Listing(settle_s=2.0, told=frozenset({"m/0"})).as_told((), ["m/0"], 10.0)

    again = listing.as_told(["m/0"], ["m/0"], 20.0)

    assert listing.settled_s("m/0") == 12.0
    assert (again.settled_s("m/0"), again.left_s) == (None, {})
