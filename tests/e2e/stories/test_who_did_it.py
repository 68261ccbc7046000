"""Stories of what a person did to workers and GPUs: events, `why` and status say who it was."""

from __future__ import annotations

import os
import pwd
import signal
from typing import Any

import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

pytestmark = pytest.mark.e2e

POOL = """
[pool.m]
engine = "command"
command = ["/bin/sleep", "{seconds}"]
ready-after-s = 0.1
min-ready-s = 0
workers = {workers}
gpus-per-worker = 1
"""
ME = pwd.getpwuid(os.geteuid()).pw_name


def a_fleet(*, seconds: int = 600, workers: int = 1) -> str:
    return POOL.format(seconds=seconds, workers=workers)


def told(daemon: DaemonUnderTest, kind: str, worker: str | None = None) -> list[dict[str, Any]]:
    events = daemon.call("events", {"limit": 500})["events"]
    return [event for event in events if event["kind"] == kind and event["worker"] == worker]


def test_what_ends_a_run_by_command_is_told_with_who_gave_it(daemon: DaemonUnderTest) -> None:
    daemon.start(a_fleet())
    daemon.all_ready()

    daemon.ctl("roll", "m", "-y")
    daemon.ctl("apply", "-y", str(daemon.write("longer.toml", a_fleet(seconds=601))))
    daemon.ctl("apply", "-y", str(daemon.write("all.toml", a_fleet(seconds=602) + 'update = "all"\n')))
    runs = daemon.call("why", {"worker": "m/0"})["runs"]

    assert [(run["ended_by"], run["by"]) for run in runs] == [("definition", ME), ("roll", ME), ("roll", ME)]
    assert all(f"({ME})" in run["reason"] for run in runs)
    assert {event["by"] for event in told(daemon, "worker-stopping", "m/0")} == {ME}


def test_who_scaled_a_pool_and_who_signalled_a_reload_is_told(daemon: DaemonUnderTest) -> None:
    daemon.start(a_fleet(workers=2))
    daemon.all_ready()

    daemon.ctl("scale", "m=1", "-y")
    left = told(daemon, "worker-stopping", "m/1")[-1]
    daemon.write("fleet.toml", a_fleet(seconds=601))
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: told(daemon, "fleet-applied")[-1].get("by") == "SIGHUP", within_s=10)

    assert (left["by"], left["reason"].partition(";")[0]) == (ME, f"scaled down ({ME})")
    assert [event.get("by") for event in told(daemon, "fleet-applied")] == [None, ME, "SIGHUP"]


def test_who_took_a_gpu_or_the_driver_out_of_service_is_told(daemon: DaemonUnderTest) -> None:
    daemon.start(a_fleet())
    daemon.all_ready()

    cordoned = daemon.ctl("gpu", "cordon", "1")
    daemon.ctl("gpu", "uncordon", "1")
    daemon.ctl("inventory", "release")
    daemon.ctl("inventory", "resume")

    assert cordoned.stdout == f"GPU 1 is cordoned (by {ME}); to use it again: gpuctl gpu uncordon 1\n"
    kinds = ("gpu-cordoned", "gpu-uncordoned", "inventory-released", "inventory-resumed")
    assert [told(daemon, kind)[0]["by"] for kind in kinds] == [ME] * 4
