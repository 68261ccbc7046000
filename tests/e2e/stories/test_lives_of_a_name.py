"""Stories of a worker that leaves the fleet and comes back: what an earlier life did is not held against it."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal

import pytest
from tests.e2e.daemon import DaemonUnderTest

pytestmark = pytest.mark.e2e

RUNS_OUT_ONCE = """
[pool.m]
model = "org/m"
gpus-per-worker = 1
on-oom = "hold"
[pool.m.env]
GPUWARD_SIM_FAULT = "oom@ready+0.1"
"""
WORKS = RUNS_OUT_ONCE.replace("oom@ready+0.1", "")


def test_a_worker_that_comes_back_is_not_blamed_for_its_earlier_life(daemon: DaemonUnderTest) -> None:
    daemon.start(RUNS_OUT_ONCE)
    daemon.until("m/0", lambda worker: worker["phase"] == "failed")
    assert daemon.ctl("scale", "m=0", "-y").returncode == 0

    daemon.ctl("apply", "-y", str(daemon.write("works.toml", WORKS)))
    healthy = daemon.until("m/0", lambda worker: worker["ready"])
    os.kill(healthy["pid"], signal.SIGKILL)
    again = daemon.until("m/0", lambda worker: worker["run"] > healthy["run"] and worker["ready"])
    runs = json.loads(daemon.ctl("why", "m/0", "-o", "json").stdout)["runs"]

    assert (healthy["run"], again["run"]) == (2, 3)
    assert [(run["run"], run["cause"]) for run in runs] == [(2, "crash"), (1, "gpu-oom-runtime")]
    assert not any("memory" in line for line in again["last_exit"]["evidence"])


def test_a_lost_state_gives_no_number_twice(daemon: DaemonUnderTest) -> None:
    daemon.start(WORKS)
    first = daemon.until("m/0", lambda worker: worker["ready"])
    daemon.stop()
    for path in (daemon.root / "st").rglob("*.json"):
        path.unlink()
    for place in ("workers", "history"):
        shutil.rmtree(next((daemon.root / "st").rglob(place)))

    daemon.start(WORKS)
    second = daemon.until("m/0", lambda worker: worker["ready"])

    assert (first["run"], second["run"]) == (1, 2)


def test_a_stop_is_told_with_who_asked_and_the_daemons_own_stop_as_that(daemon: DaemonUnderTest) -> None:
    daemon.start(WORKS)
    daemon.until("m/0", lambda worker: worker["ready"])
    assert daemon.ctl("restart", "m/0", "-y").returncode == 0
    daemon.stop()

    daemon.start(WORKS)
    runs = json.loads(daemon.ctl("why", "m/0", "-o", "json").stdout)["runs"]

    user = pwd.getpwuid(os.getuid()).pw_name
    assert [(run["ended_by"], run["by"]) for run in runs] == [("halt", None), ("restart", user)]
    assert [run["reason"].partition(" (")[0] for run in runs] == ["the daemon stops", "restart by command"]
    assert f"restart by command ({user})" in runs[1]["reason"]
