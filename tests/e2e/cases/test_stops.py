"""Stops are final and bounded, and status names what they wait for."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from tests.e2e.cases.scripts import IGNORES_SIGTERM, SLEEPS, command, outcome, pools, python
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

from gpuward.control.roles import user_name
from gpuward.host.processes import tree

pytestmark = pytest.mark.e2e


def test_a_worker_that_ignores_sigterm_is_killed_when_its_grace_is_over_and_not_before(daemon: DaemonUnderTest) -> None:
    daemon.start(pools(w={"command": python(IGNORES_SIGTERM), "stop-timeout-s": 1.0}))
    daemon.all_ready()

    asked_s = time.monotonic()
    operation = command(daemon, "stop", "w")
    stopping = daemon.worker("w/0")
    why = daemon.call("why", {"worker": "w/0"})["sentences"]
    ended = outcome(daemon, operation)
    took_s = time.monotonic() - asked_s

    assert (stopping["phase"], stopping["reason"]) == (
        "stopping",
        f"stopped by command ({user_name(os.getuid())}); SIGTERM sent, SIGKILL follows after 1 s",
    )
    assert any("the whole tree is killed if it is not gone by then" in sentence for sentence in why)
    assert (ended["state"], daemon.worker("w/0")["last_exit"]["signal"]) == ("done", signal.SIGKILL)
    assert 1.0 <= took_s < 3.0


def test_a_stopped_process_is_continued_so_that_it_can_end_by_sigterm(daemon: DaemonUnderTest) -> None:
    daemon.start(pools(w={"command": python(SLEEPS), "stop-timeout-s": 30.0}))
    pid = daemon.all_ready()["w/0"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, within_s=5)

    asked_s = time.monotonic()
    outcome(daemon, command(daemon, "stop", "w"))

    assert time.monotonic() - asked_s < 5
    assert daemon.worker("w/0")["last_exit"]["signal"] == signal.SIGTERM


def test_a_vllm_that_loses_the_first_sigterm_while_its_engine_starts_is_killed_in_time(daemon: DaemonUnderTest) -> None:
    daemon.environment["GPUWARD_SIM_START_S"] = "10"
    daemon.start('[pool.m]\nmodel = "org/m"\nstop-timeout-s = 1.0\n')
    daemon.until("m/0", lambda worker: worker["pid"] is not None and tree(worker["pid"]) != ())

    asked_s = time.monotonic()
    ended = outcome(daemon, command(daemon, "stop", "m"))
    took_s = time.monotonic() - asked_s

    assert (ended["state"], daemon.worker("m/0")["last_exit"]["signal"]) == ("done", signal.SIGKILL)
    assert 1.0 <= took_s < 4.0
    assert daemon.left() == ()


def test_a_stop_inside_the_start_window_ends_the_start_and_leaves_nothing(daemon: DaemonUnderTest) -> None:
    daemon.start(pools(w={"command": python(SLEEPS), "ready-after-s": 60.0, "stop-timeout-s": 30.0}))
    outcome(daemon, command(daemon, "stop", "w"))

    starting = command(daemon, "start", "w")
    asked_s = time.monotonic()
    stopping = command(daemon, "stop", "w")
    ends = [outcome(daemon, starting), outcome(daemon, stopping)]
    took_s = time.monotonic() - asked_s

    assert [end["state"] for end in ends] == ["failed", "done"]
    assert ends[0]["workers"][0]["reason"] == f"superseded by {stopping}: it is stopped now"
    assert took_s < 10, "the SIGTERM was lost: it came before the worker's program"
    assert (daemon.worker("w/0")["phase"], daemon.worker("w/0")["goal"]) == ("stopped", "down")
    assert daemon.left() == ()


def test_a_second_sigterm_to_the_daemon_hurries(daemon: DaemonUnderTest) -> None:
    daemon.start(pools(w={"command": python(IGNORES_SIGTERM), "stop-timeout-s": 60.0, "workers": 2}))
    daemon.all_ready()
    assert daemon.process is not None

    daemon.process.send_signal(signal.SIGTERM)
    daemon.until("w/0", lambda worker: worker["phase"] == "stopping")
    asked_s = time.monotonic()
    code = daemon.stop()

    assert (code, daemon.left()) == (0, ())
    assert time.monotonic() - asked_s < 5
    assert "kills every worker" in daemon.log()


def test_a_sigterm_while_the_workers_start_leaves_nothing(daemon: DaemonUnderTest) -> None:
    keys = {"command": python(SLEEPS), "ready-after-s": 60.0, "stop-timeout-s": 30.0, "workers": 4}
    daemon.start(pools(w=keys), wait=False)
    eventually(daemon.left, within_s=20, every_s=0.001)

    asked_s = time.monotonic()
    code = daemon.stop()

    assert (code, daemon.left()) == (0, ())
    assert time.monotonic() - asked_s < 10


@pytest.mark.parametrize("instant_s", [0.2, 0.3, 0.4])
def test_a_sigterm_at_any_instant_of_a_takeover_ends_the_daemon(daemon: DaemonUnderTest, instant_s: float) -> None:
    daemon.start(pools(w={"command": python(SLEEPS), "workers": 2}))
    daemon.all_ready()
    daemon.kill()

    daemon.start(daemon.root / "fleet.toml", wait=False)
    assert daemon.process is not None
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.process.wait(instant_s)
    code = daemon.stop()

    assert code in {0, -signal.SIGTERM}  # killed by it before it was a daemon: then nobody has touched the workers
    if code:
        assert len(daemon.left()) == 2
        daemon.start(daemon.root / "fleet.toml")
        assert daemon.stop() == 0
    assert daemon.left() == ()


def test_decode_workers_are_gone_before_their_prefill_worker_is_even_asked(
    daemon: DaemonUnderTest, tmp_path: Path
) -> None:
    slow = f"signal.signal(15, lambda *_: (time.sleep(0.6), open('{tmp_path}/decode', 'w'), os._exit(0))); {SLEEPS}"
    asked = f"signal.signal(15, lambda *_: (open('{tmp_path}/prefill', 'w'), os._exit(0))); {SLEEPS}"
    daemon.start(
        pools(
            prefill={"command": python(asked), "stop-timeout-s": 0.2},
            decode={"command": python(slow), "depends-on": ["prefill"], "workers": 2, "stop-timeout-s": 10.0},
        )
    )
    daemon.all_ready()
    assert daemon.process is not None

    daemon.process.send_signal(signal.SIGTERM)
    waiting = daemon.until("prefill/0", lambda worker: worker["phase"] == "draining")
    code = daemon.process.wait(20)

    assert waiting["reason"] == "the daemon stops; waits for decode/0, decode/1 to stop first"
    assert code == 0
    assert (tmp_path / "decode").stat().st_mtime_ns < (tmp_path / "prefill").stat().st_mtime_ns
