"""A run is taken over by who its keeper is, not by the pid that it had."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpuward.host import keeper
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


COUNTS_SIGTERM = """
import os, signal
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"T"))
signal.signal(signal.SIGWINCH, lambda *_: os.write(1, b"."))
os.write(1, b"R")
while True:
    signal.pause()
"""


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The main process of run 1 of m/0: prints T for SIGTERM, a dot for SIGWINCH (handled after it)."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", COUNTS_SIGTERM], stdout=subprocess.PIPE) as main:
        assert main.stdout is not None
        assert main.stdout.read(1) == b"R"
        identity = identify(main.pid)
        assert identity is not None
        directory = tmp_path / "m" / "0" / "1"
        directory.mkdir(parents=True)
        keeper.write_pairs(str(directory), "spec", [("boot_id", identity.boot_id)])
        keeper.write_pairs(str(directory), "started", [("pid", main.pid), ("start_ticks", identity.start_ticks)])
        yield main
        main.kill()


def test_a_run_is_sent_one_sigterm_whichever_daemon_asks_it_to_end(
    counting: subprocess.Popen[bytes], stranger: Identity, tmp_path: Path
) -> None:
    async def a_daemon_terminates() -> None:
        live = LiveRun(
            Runs(tmp_path), "m/0", 1, on_started=lambda: None, on_main_ended=lambda: None, on_ended=lambda: None
        )
        assert live.adopt(stranger)
        live.terminate()
        live.close()

    asyncio.run(a_daemon_terminates())
    assert counting.stdout is not None
    first = counting.stdout.read(1)
    asyncio.run(a_daemon_terminates())
    counting.send_signal(signal.SIGWINCH)
    then = counting.stdout.read(1)

    assert (first, then) == (b"T", b".")
