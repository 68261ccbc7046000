"""Order between workers, and news that come at the wrong time."""

from __future__ import annotations

from dataclasses import replace

from tests.policy.fleets import a_snapshot

from gpuward.config.fleet import Pool
from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.fleet.step import FleetState, halt, next_deadline_s, step
from gpuward.policy.worker.life import Goal, Kill, Phase, ProbeMissed, RunEnded, StartRun, Terminate, Worker
from gpuward.policy.worker.step import DRAIN_LIMIT_S

PREFILL = Pool(name="prefill", model="m", gpus_per_worker=0, stop_timeout_s=5)
DECODE = Pool(name="decode", model="m", workers=2, gpus_per_worker=0, stop_timeout_s=60, depends_on=("prefill",))


def a_fleet(phase: Phase = Phase.READY) -> FleetState:
    names = ("prefill/0", "decode/0", "decode/1")
    workers = {
        name: Worker(
            name=name, pool=name[:-2], index=int(name[-1]), goal=Goal.UP, phase=phase, run=1, ready_since_s=0.0
        )
        for name in names
    }
    pools = {"prefill": PREFILL, "decode": DECODE}
    return FleetState(snapshot=a_snapshot(1), workers=workers, pools=pools)


def an_end(run: int = 1) -> RunEnded:
    exit_ = LastExit(run=run, cause="commanded", code=0, signal=None, at=0.0)
    return RunEnded(run=run, exit=exit_, permanent=False, reason="asked to")


def test_a_prefill_worker_is_not_even_asked_to_stop_before_every_decode_worker_is_gone() -> None:
    state, asked = halt(a_fleet(), 10.0)
    state, after_one = step(state, [("decode/0", an_end())], 20.0)
    state, after_both = step(state, [("decode/1", an_end())], 30.0)

    assert asked == (Terminate("decode/0"), Terminate("decode/1"))
    assert (after_one, after_both) == ((), (Terminate("prefill/0"),))


def test_a_prefill_worker_waits_for_its_decode_workers_until_its_deadline_and_no_longer() -> None:
    state, _ = halt(a_fleet(), 0.0)

    state, early = step(state, [], DRAIN_LIMIT_S - 1)
    waiting = state.workers["prefill/0"]
    state, late = step(state, [], DRAIN_LIMIT_S)

    assert Terminate("prefill/0") not in early
    assert Kill("prefill/0") not in (*early, *late)
    assert waiting.reason == "the daemon stops; waits for decode/0, decode/1 to stop first"
    assert Terminate("prefill/0") in late


def test_every_stop_has_a_deadline() -> None:
    state, _ = halt(a_fleet(), 0.0)

    for now_s in (1.0, 61.0, 75.0, 301.0, 310.0, 400.0):
        state, _ = step(state, [], now_s)
        assert all(worker.deadline_s is not None for worker in state.workers.values() if worker.alive)
        deadline_s = next_deadline_s(state, now_s)
        assert deadline_s is not None
        assert deadline_s > now_s


def test_a_probe_that_fails_again_and_again_during_backoff_starts_nothing() -> None:
    state = a_fleet()
    waiting = replace(state.workers["prefill/0"], phase=Phase.BACKOFF, not_before_s=100.0, reason="crash")
    state = replace(state, workers={**state.workers, "prefill/0": waiting})

    for now_s in (10.0, 20.0, 30.0):
        state, effects = step(state, [("prefill/0", ProbeMissed(1, "no answer"))] * 5, now_s)
        assert effects == ()
    state, effects = step(state, [("prefill/0", ProbeMissed(1, "no answer"))], 100.0)

    assert [effect for effect in effects if isinstance(effect, StartRun)] == [StartRun("prefill/0", 2)]
