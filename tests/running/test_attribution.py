"""Whose memory it is: real processes, found by session; what the driver does not tell is not counted as nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from tests.policy.fleets import GIB, a_gpu

from gpuward.policy.inventory import GpuProcess, Snapshot
from gpuward.running.attribution import Attribution, Tracks


@pytest.fixture
def processes() -> Iterator[tuple[int, int]]:
    """A process of a session of its own, which is a run's, and one of another session, which is not."""
    command = ["sleep", "60"]
    with (
        subprocess.Popen(command, start_new_session=True) as ours,
        subprocess.Popen(command, start_new_session=True) as foreign,
    ):
        try:
            yield ours.pid, foreign.pid
        finally:
            ours.kill()
            foreign.kill()


def tracks_of(pid: int) -> Tracks:
    return Tracks(sessions={pid: "a/0"}, keepers={pid: "a/0"}, markers={}, mark=b"GPUWARD_RUN=test:")


def a_sample(*held: tuple[int, int | None]) -> Snapshot:
    processes = tuple(GpuProcess(pid=pid, used_bytes=used_bytes) for pid, used_bytes in held)
    return Snapshot(provider="nvml", state="ok", taken_at_s=0.0, gpus=(a_gpu(0, processes=processes), a_gpu(1)))


def test_memory_of_a_runs_session_is_its_workers(processes: tuple[int, int]) -> None:
    ours, foreign = processes
    attribution = Attribution()

    attribution.update(a_sample((ours, 3 * GIB), (foreign, 5 * GIB)), tracks_of(ours))

    assert attribution.used_bytes == {"a/0": {"GPU-0": 3 * GIB}}
    assert attribution.untold == set()
    assert attribution.holders[ours].kind == "ours"
    assert attribution.holders[foreign].kind == "foreign"


def test_memory_that_the_driver_does_not_tell_is_untold_not_zero_until_it_does(processes: tuple[int, int]) -> None:
    ours, _ = processes
    attribution = Attribution()

    attribution.update(a_sample((ours, None)), tracks_of(ours))
    untold = set(attribution.untold)
    attribution.update(a_sample((ours, GIB)), tracks_of(ours))

    assert untold == {("a/0", "GPU-0")}
    assert attribution.untold == set()
