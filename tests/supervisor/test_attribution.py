"""Whose memory it is: real processes, found by session; what the driver does not tell is not counted as nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from tests.policy.fleets import GIB, a_gpu

from gpuward.host.processes import ancestors, identify
from gpuward.policy.gpus.holders import Holder
from gpuward.policy.gpus.inventory import GpuProcess, Snapshot
from gpuward.supervisor.attribution import Attribution, Tracks, owner_of


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


def test_a_process_belongs_to_the_keeper_above_it_whatever_its_session(processes: tuple[int, int]) -> None:
    ours, _ = processes
    tracks = Tracks(sessions={}, keepers={os.getpid(): "a/0"}, markers={})

    assert owner_of(ours, tracks) == "a/0"
    assert owner_of(ours, Tracks(sessions={}, keepers={ours: "a/0"}, markers={})) is None  # above, not the same


def test_ancestors_are_told_up_to_the_first_process_and_older_than_their_children(processes: tuple[int, int]) -> None:
    above = tuple(ancestors(processes[0]))

    starts = [identity.start_ticks for pid in above if (identity := identify(pid)) is not None]
    assert above[:2] == (os.getpid(), os.getppid())
    assert len(starts) == len(above)
    assert starts == sorted(starts, reverse=True)


def test_a_pid_that_another_process_has_now_is_asked_anew(processes: tuple[int, int]) -> None:
    ours, foreign = processes
    attribution = Attribution()
    attribution.update(a_sample((ours, GIB), (foreign, GIB)), tracks_of(ours))
    tracks = tracks_of(ours)
    before = identify(foreign)
    assert before is not None

    # as if the process that had this pid in the last sample had been one of ours
    attribution.owners[foreign] = "a/0"
    attribution._identities[foreign] = type(before)(before.boot_id, foreign, before.start_ticks - 1)
    attribution.update(a_sample((ours, GIB), (foreign, GIB)), tracks)

    assert attribution.owners == {ours: "a/0"}
    assert attribution.holders[foreign].kind == "foreign"


def test_a_process_that_is_gone_stays_what_it_was_while_the_driver_lists_it() -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        attribution = Attribution()
        attribution.update(a_sample((process.pid, GIB)), tracks_of(process.pid))
        process.kill()
    process.wait()

    nobody = Tracks(sessions={}, keepers={}, markers={})
    attribution.update(a_sample((process.pid, GIB)), nobody)
    attribution.update(a_sample((process.pid, GIB)), nobody)

    assert attribution.holders[process.pid] == Holder(kind="former", worker="a/0")


def test_a_process_that_was_foreign_is_asked_again_when_other_runs_live(processes: tuple[int, int]) -> None:
    ours, _ = processes
    attribution = Attribution()

    attribution.update(a_sample((ours, GIB)), Tracks(sessions={}, keepers={}, markers={}))
    before = dict(attribution.owners)
    attribution.update(a_sample((ours, GIB)), tracks_of(ours))

    assert (before, attribution.owners) == ({}, {ours: "a/0"})
