"""What the GPUs told of a run before it ended."""

from __future__ import annotations

import time
from dataclasses import replace

from tests.policy.fleets import GIB, a_gpu

from gpuward.config.host import XidSettings
from gpuward.policy.gpus.health import XidSeen
from gpuward.policy.gpus.inventory import Gpu, Snapshot
from gpuward.policy.worker.life import Phase, Worker
from gpuward.supervisor.attribution import Attribution
from gpuward.supervisor.traces import Span, Traces

WORKER = Worker(name="a/0", pool="a", index=0, phase=Phase.READY, run=1, run_uuids=("GPU-0",))


def gpu_with(used_gib: int) -> Gpu:
    return replace(a_gpu(0), total_bytes=80 * GIB, used_bytes=used_gib * GIB, free_bytes=(80 - used_gib) * GIB)


def observe(traces: Traces, ago_s: float, own_gib: int, gpu: Gpu, state: str = "ok", *, untold: bool = False) -> None:
    attribution = Attribution(used_bytes={"a/0": {"GPU-0": own_gib * GIB}})
    if untold:
        attribution.untold = {("a/0", "GPU-0")}
    snapshot = Snapshot(provider="nvml", state=state, taken_at_s=time.monotonic() - ago_s, gpus=(gpu,))  # type: ignore[arg-type]
    traces.observe(snapshot, {"a/0": WORKER}, attribution)


def told(traces: Traces, span: Span | None = None) -> str:
    moments = traces.last_moments(WORKER, {gpu_with(0): 72 * GIB}, XidSettings(), span or Span(time.time(), None))
    return moments.memory.line if moments.memory is not None else ""


def test_memory_is_told_of_the_last_sample_that_was_taken_before_the_end() -> None:
    traces = Traces()
    observe(traces, 3.0, 60, gpu_with(66))
    observe(traces, 2.0, 70, gpu_with(76))
    observe(traces, 0.0, 0, gpu_with(6))

    line = told(traces, Span(time.time() - 1.0, None))

    head, _, when = line.rpartition(", ")
    assert head == "GPU 0: it held 70.0 GiB of its 72.0 GiB claim, others held 6.0 GiB, 4.0 GiB were free"
    assert when == "1.0 s before the end"


def test_a_sample_in_which_the_run_had_let_go_already_is_passed_over() -> None:
    traces = Traces()
    observe(traces, 2.0, 70, gpu_with(76))
    observe(traces, 1.0, 1, gpu_with(7))

    assert told(traces).startswith("GPU 0: it held 70.0 GiB")


def test_old_stale_settling_and_untold_samples_say_nothing() -> None:
    for ago_s, gpu, state, untold in (
        (11.0, gpu_with(76), "ok", False),
        (1.0, gpu_with(76), "stale", False),
        (1.0, replace(gpu_with(76), settling=True), "ok", False),
        (1.0, gpu_with(76), "ok", True),
        (1.0, replace(gpu_with(76), used_bytes=None), "ok", False),
    ):
        traces = Traces()
        observe(traces, ago_s, 70, gpu, state, untold=untold)

        assert told(traces) == ""


def test_a_flood_of_one_error_does_not_wash_another_away_and_only_the_runs_gpus_count() -> None:
    traces, now = Traces(), time.time()
    traces.hear(XidSeen(uuid="GPU-0", code=79, at=now - 5))
    traces.hear(XidSeen(uuid="GPU-1", code=48, at=now - 5))
    for _ in range(10_000):
        traces.hear(XidSeen(uuid="GPU-0", code=13, at=now - 1))

    moments = traces.last_moments(WORKER, {}, XidSettings(), Span(now, None))

    assert [(xid.code, xid.gpu) for xid in moments.xids] == [(79, "GPU GPU-0"), (13, "GPU GPU-0")]
    assert len(list(traces.xids())) < 100


def test_what_came_after_the_daemon_began_to_end_the_run_is_left_out() -> None:
    traces, now = Traces(), time.time()
    traces.hear(XidSeen(uuid="GPU-0", code=31, at=now - 1))

    assert traces.last_moments(WORKER, {}, XidSettings(), Span(now, now - 2)).xids == ()
    assert len(traces.last_moments(WORKER, {}, XidSettings(), Span(now, now - 0.5)).xids) == 1
