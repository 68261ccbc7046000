"""A run is taken over by who its keeper is, not by the pid that it had."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpuward.host.live import LiveRun, sweep
from gpuward.host.processes import Identity, identify
from gpuward.host.runs import Runs

pytestmark = pytest.mark.e2e


@pytest.fixture
def stranger() -> Iterator[Identity]:
    """A process that has nothing to do with any run."""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"], {})
    identity = identify(pid)
    assert identity is not None
    yield identity
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.parametrize(
    "other",
    [{"start_ticks": 1}, {"boot_id": "another boot"}],
    ids=["the pid was used again", "of an earlier boot"],
)
def test_a_process_with_the_pid_of_a_keeper_is_no_keeper(
    stranger: Identity, tmp_path: Path, other: dict[str, object]
) -> None:
    async def adopted() -> bool:
        live = LiveRun(
            Runs(tmp_path), "m/0", 1, on_started=lambda: None, on_main_ended=lambda: None, on_ended=lambda: None
        )
        taken = live.adopt(replace(stranger, **other))
        live.close()
        return taken

    assert not asyncio.run(adopted())
    assert identify(stranger.pid) == stranger


def test_a_sweep_spares_a_stranger_that_has_the_pid_of_the_main_process(stranger: Identity) -> None:
    swept = sweep("GPUWARD_TEST=none", replace(stranger, start_ticks=1))

    assert swept == ()
    assert identify(stranger.pid) == stranger


def test_a_sweep_without_a_marker_is_refused() -> None:
    with pytest.raises(ValueError, match="marker"):
        sweep("", None)
