"""Whose memory it is: real processes, found by session; what the driver does not tell is not counted as nothing."""

from __future__ import annotations

import os

from tests.policy.fleets import GIB, a_gpu

from gpuward.policy.inventory import GpuProcess, Snapshot
from gpuward.running.attribution import Attribution, Tracks

OURS = Tracks(sessions={os.getsid(0): "a/0"}, keepers={os.getppid(): "a/0"}, markers={}, mark=b"GPUWARD_RUN=test:")


def a_sample(*held: tuple[int, int | None]) -> Snapshot:
    processes = tuple(GpuProcess(pid=pid, used_bytes=used_bytes) for pid, used_bytes in held)
    return Snapshot(provider="nvml", state="ok", taken_at_s=0.0, gpus=(a_gpu(0, processes=processes), a_gpu(1)))


def test_memory_of_a_runs_session_is_its_workers() -> None:
    attribution = Attribution()

    attribution.update(a_sample((os.getpid(), 3 * GIB), (1, 5 * GIB)), OURS)

    assert attribution.used_bytes == {"a/0": {"GPU-0": 3 * GIB}}
    assert attribution.untold == set()
    assert attribution.holders[os.getpid()].kind == "ours"


def test_memory_that_the_driver_does_not_tell_is_untold_not_zero_until_it_does() -> None:
    attribution = Attribution()

    attribution.update(a_sample((os.getpid(), None)), OURS)
    untold = set(attribution.untold)
    attribution.update(a_sample((os.getpid(), GIB)), OURS)

    assert untold == {("a/0", "GPU-0")}
    assert attribution.untold == set()
