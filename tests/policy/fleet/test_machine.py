"""Whatever happens in whatever order: the invariants of the whole fleet, with a model of the processes that run."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.policy.fleets import a_snapshot, applied

from gpuward.config.fleet import Fleet, Pool, RestartPolicy
from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.fleet.step import FleetState, Outcome, halt, next_deadline_s, observe, step
from gpuward.policy.worker.life import (
    BecameReady,
    Effect,
    Event,
    Goal,
    Hung,
    Phase,
    ProbeMissed,
    RestartAsked,
    RunEnded,
    StartAsked,
    StartRefused,
    StartRun,
    StopAsked,
    Terminate,
)
from gpuward.policy.worker.phases import sentence
from gpuward.policy.worker.response import WAIT_WINDOW_S, WAITS_MAX
from gpuward.policy.worker.step import DRAIN_LIMIT_S

GPUS = 4
BUDGET = RestartPolicy(max_failures=3, window_s=50, delay_first_s=1, delay_max_s=4, reset_after_s=5)


def pools(workers: int, model: str, *, swapped: bool = False) -> tuple[Pool, ...]:
    return (
        Pool(
            name="prefill",
            model="m",
            gpus_per_worker=1,
            gpus=(1 if swapped else 0,),
            restart=BUDGET,
            start_timeout_s=30,
        ),
        Pool(
            name="decode",
            model=model,
            workers=workers,
            gpus_per_worker=1,
            restart=BUDGET,
            depends_on=("prefill",),
            stop_timeout_s=5,
            start_timeout_s=20,
        ),
        Pool(
            name="small",
            model="m",
            workers=2,
            gpus_per_worker=1,
            gpus=(3,),
            share=True,
            gpu_memory_utilization=0.4,
            restart=BUDGET,
        ),
    )


NAMES = st.sampled_from(["prefill/0", "decode/0", "decode/1", "small/0", "small/1"])


class FleetMachine(RuleBasedStateMachine):
    """``running`` models the process trees: what was started and has not ended."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.fleet = Fleet(pools=pools(2, "m"))
        self.running: dict[str, tuple[int, tuple[str, ...]]] = {}
        self.commanded: set[str] = set()
        self.automatic: dict[str, list[float]] = {}
        self.waiting: set[str] = set()
        self.waits: dict[str, list[float]] = {}
        self.state = FleetState(snapshot=a_snapshot(GPUS))

    @initialize()
    def first_fleet(self) -> None:
        self.commanded = {name for pool in self.fleet.pools for name in pool.worker_names}
        self.take(applied(self.state, self.fleet.pools, None, self.now_s))

    def take(self, outcome: Outcome) -> None:
        self.state, effects = outcome
        for effect in effects:
            self.perform(effect)

    def perform(self, effect: Effect) -> None:
        if isinstance(effect, Terminate):
            self.no_neighbour_measures(effect.worker)
        if not isinstance(effect, StartRun):
            return
        name = effect.worker
        assert name not in self.running, f"two process trees for {name}"
        assert self.state.workers[name].goal is Goal.UP
        assert not self.state.halting
        self.running[name] = (effect.run, self.state.workers[name].run_uuids)
        if name in self.commanded:
            self.commanded.discard(name)
            self.automatic[name] = []
            self.waits[name] = []
        elif name in self.waiting:
            self.waits.setdefault(name, []).append(self.now_s)
        else:
            self.automatic.setdefault(name, []).append(self.now_s)

    def no_neighbour_measures(self, name: str) -> None:
        """On a shared GPU a ready worker is stopped while another starts only by the bound, or with the daemon."""
        worker = self.state.workers[name]
        others = [other for other in self.state.workers.values() if other.name != name and other.pool == "small"]
        if worker.pool == "small" and worker.ready_since_s is not None and not self.state.halting:
            assert worker.ending is not None
            assert worker.ending.waited_s == DRAIN_LIMIT_S or not any(other.phase is Phase.STARTING for other in others)

    def tell(self, name: str, event: Event) -> None:
        self.take(step(self.state, [(name, event)], self.now_s))

    @rule(seconds=st.floats(0.1, 12))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.take(step(self.state, [], self.now_s))

    @rule(ok=st.booleans())
    def a_sample_comes(self, ok: bool) -> None:
        self.now_s += 0.1
        snapshot = a_snapshot(GPUS, at_s=self.now_s)
        self.take(observe(self.state, snapshot if ok else replace(snapshot, state="stale", reason="r"), self.now_s))

    @rule(name=NAMES, event=st.sampled_from([StartAsked(), StopAsked(), RestartAsked("by command")]))
    def the_operator_asks(self, name: str, event: Event) -> None:
        if not isinstance(event, StopAsked):
            self.commanded.add(name)
        self.tell(name, event)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), permanent=st.booleans(), cause=st.sampled_from(["crash", "gpu-busy", "cuda-fault"]))
    def a_run_ends(self, data: st.DataObject, permanent: bool, cause: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        run, _ = self.running.pop(name)
        if cause == "gpu-busy":
            self.waiting.add(name)
        else:
            self.waiting.discard(name)
        exit_ = LastExit(run=run, cause=cause, code=1, signal=None, at=0.0)
        self.tell(name, RunEnded(run=run, exit=exit_, permanent=permanent, reason=cause, jitter=0.5))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def a_start_is_refused(self, data: st.DataObject) -> None:
        """News of a refusal may come late: whatever has been asked meanwhile."""
        never_ready = [name for name in self.running if self.state.workers[name].ready_since_s is None]
        if never_ready:
            name = data.draw(st.sampled_from(never_ready))
            run, _ = self.running.pop(name)
            if self.automatic.get(name):
                self.automatic[name].pop()
            starting = self.state.workers[name].phase is Phase.STARTING
            self.tell(name, StartRefused(run, "the port is taken", kind="port"))
            worker = self.state.workers.get(name)
            if starting and worker is not None:
                assert (worker.run, worker.not_before_s > self.now_s) == (run - 1, True)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), ready=st.booleans())
    def a_probe_answers(self, data: st.DataObject, ready: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        run = self.running[name][0]
        self.tell(name, BecameReady(run) if ready else ProbeMissed(run, "refuses connections"))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def a_run_hangs(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        self.tell(name, Hung(self.running[name][0], "no token came"))

    @rule(workers=st.integers(0, 2), model=st.sampled_from(["m", "n"]), swapped=st.booleans())
    def a_fleet_is_applied(self, workers: int, model: str, swapped: bool) -> None:
        if self.state.halting or self.state.snapshot.state != "ok":
            return
        old, self.fleet = self.fleet, Fleet(pools=pools(workers, model, swapped=swapped))
        self.commanded |= {"prefill/0", "decode/0", "decode/1"}
        self.take(applied(self.state, self.fleet.pools, old, self.now_s))

    @precondition(lambda self: not self.state.halting)
    @rule(really=st.integers(0, 30))
    def the_daemon_stops(self, really: int) -> None:
        if really == 0:
            self.take(halt(self.state, self.now_s))

    @invariant()
    def a_run_exists_exactly_in_the_phases_that_say_so(self) -> None:
        assert {name for name, worker in self.state.workers.items() if worker.alive} == set(self.running)

    @invariant()
    def no_exclusive_gpu_has_two_trees(self) -> None:
        exclusive = [
            uuid for name, (_, uuids) in self.running.items() if not name.startswith("small") for uuid in uuids
        ]
        assert len(exclusive) == len(set(exclusive))
        assert "GPU-3" not in exclusive

    @invariant()
    def on_a_shared_gpu_one_worker_starts_at_a_time(self) -> None:
        starting = [
            name
            for name in self.running
            if name.startswith("small") and self.state.workers[name].phase is Phase.STARTING
        ]
        assert len(starting) <= 1

    @invariant()
    def every_wait_has_a_reason(self) -> None:
        assert all(worker.reason for worker in self.state.workers.values())

    @invariant()
    def what_people_are_told_is_what_the_records_say(self) -> None:
        assert all(worker.reason == sentence(worker) for worker in self.state.workers.values())

    @invariant()
    def who_is_wanted_up_never_rests_stopped(self) -> None:
        """Nothing here says ``never`` or ``stop``: not the restart mode, not on-breach."""
        workers = self.state.workers.values() if not self.state.halting else ()
        assert not [one.name for one in workers if one.goal is Goal.UP and one.phase is Phase.STOPPED]

    @invariant()
    def automatic_starts_stay_within_the_budget(self) -> None:
        for name, times in self.automatic.items():
            for first in times:
                within = [at for at in times if first <= at < first + BUDGET.window_s]
                assert len(within) <= BUDGET.max_failures, (name, within)

    @invariant()
    def starts_that_wait_for_a_condition_have_a_bound_of_their_own(self) -> None:
        for name, times in self.waits.items():
            for first in times:
                within = [at for at in times if first <= at < first + WAIT_WINDOW_S]
                assert len(within) <= WAITS_MAX, (name, within)

    @invariant()
    def the_loop_never_spins(self) -> None:
        deadline_s = next_deadline_s(self.state, self.now_s)
        assert deadline_s is None or deadline_s > self.now_s or self.state.halting


TestFleetMachine = FleetMachine.TestCase
TestFleetMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
