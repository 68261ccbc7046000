"""Stories of memory that is not there: an orphan of ours, somebody else, a GPU that gives it back late."""

from __future__ import annotations

import os
import signal
from datetime import datetime
from typing import Any

import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.e2e.stories.holding import Holding
from tests.waiting import eventually

pytestmark = pytest.mark.e2e

ONE = """
[pool.m]
model = "org/m"
gpus-per-worker = 1
[pool.m.restart]
delay-first-s = 0.05
"""
SLEEPER = """
[pool.s]
engine = "command"
command = ["/bin/sleep", "1000"]
ready-after-s = 0.05
gpus-per-worker = 1
[pool.s.restart]
delay-first-s = 0.01
delay-max-s = 0.01
"""


def test_an_orphan_of_ours_that_holds_the_memory_is_killed_and_the_worker_starts(daemon: DaemonUnderTest) -> None:
    (daemon.root / "st").mkdir()
    daemon.write("st/instance", "0123456789ab\n")
    daemon.write("st/simulated-host", "")  # as an earlier daemon of the simulated host leaves it
    with Holding(daemon, gpu=0, gib=70, marker="0123456789ab:m/0#7") as orphan:
        daemon.start(ONE)

        daemon.until("m/0", lambda worker: worker["ready"])

        assert orphan.process.wait(5) == -signal.SIGKILL
    killed = [event for event in daemon.call("events")["events"] if event["kind"] == "orphan-killed"]
    assert killed[0]["reason"] == "processes of run 7 of m/0, which has ended, hold GPU memory: killed"


def test_a_foreign_process_is_named_waited_for_and_never_touched(daemon: DaemonUnderTest) -> None:
    with Holding(daemon, gpu=0, gib=40, marker="another-daemon:m/0#1") as foreign:
        daemon.start(ONE)
        blocked = daemon.until("m/0", lambda worker: worker["phase"] == "blocked")
        assert foreign.alive
        why = daemon.ctl("why", "m/0").stdout

    ready = daemon.until("m/0", lambda worker: worker["ready"])

    assert f"held by pid {foreign.pid} (" in blocked["reason"]
    assert ": sleep, 40.0 GiB)" in blocked["reason"]
    assert f"pid {foreign.pid}" in why
    assert (ready["run"], ready["restarts"]) == (1, 0)


def test_memory_that_the_gpu_gives_back_late_is_waited_for_and_is_no_failure(daemon: DaemonUnderTest) -> None:
    daemon.start(f'{ONE}[pool.m.env]\nGPUWARD_SIM_FAULT = "lag:1"\n')
    before = daemon.all_ready()["m/0"]

    os.kill(before["pid"], signal.SIGKILL)
    waiting = daemon.until("m/0", lambda worker: "waits for memory on GPU 0" in worker["reason"])
    after = daemon.until("m/0", lambda worker: worker["ready"] and worker["run"] == 2)

    assert waiting["phase"] in {"releasing", "blocked"}
    assert "no process is listed on it" in waiting["reason"]
    assert _seconds_between(after["last_exit"]["at"], _starts(daemon)[-1]["at"]) >= 0.9
    assert after["restarts"] == 1


def test_a_worker_that_never_held_gpu_memory_is_back_at_once(daemon: DaemonUnderTest) -> None:
    daemon.start(SLEEPER)
    before = daemon.all_ready()["s/0"]
    eventually(lambda: daemon.call("status")["inventory"]["state"] == "ok", within_s=5)

    os.kill(before["pid"], signal.SIGKILL)
    after = daemon.until("s/0", lambda worker: worker["run"] == 2 and worker["pid"] is not None)

    assert after["uptime_s"] < 1.0
    ended_at = after["last_exit"]["at"]
    assert _seconds_between(ended_at, _starts(daemon)[-1]["at"]) < 0.6  # the next sample of itself may be a second away


def _starts(daemon: DaemonUnderTest) -> list[dict[str, Any]]:
    return [event for event in daemon.call("events")["events"] if event["kind"] == "worker-starting"]


def _seconds_between(first: str, second: str) -> float:
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()
