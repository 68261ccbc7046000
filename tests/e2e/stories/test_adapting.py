"""Stories of an engine that runs out of memory until it asks for less."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.e2e.daemon import DaemonUnderTest

pytestmark = pytest.mark.e2e

RUNS_OUT = """
[pool.m]
model = "org/m"
gpus-per-worker = 1
gpu-memory-utilization = {utilization}
on-oom = "adapt"
[pool.m.restart]
delay-first-s = 0.05
delay-max-s = 0.05
[pool.m.env]
GPUWARD_SIM_FAULT = "{fault}"
"""
OOM_ABOVE_085 = RUNS_OUT.format(utilization=0.9, fault="oom-above:0.85@run+0.1")
GRAPHS_NEED_6_GIB = RUNS_OUT.format(utilization=0.95, fault="overshoot:6GiB")
TOO_LONG = """
[pool.m]
model = "org/m"
gpus-per-worker = 1
gpu-memory-utilization = 0.05
max-model-len = 32768
on-oom = "adapt"
min-max-model-len = 16000
[pool.m.restart]
delay-first-s = 0.05
"""


def arguments_of(worker: dict[str, object]) -> str:
    return Path(f"/proc/{worker['pid']}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_an_oom_loop_adapts_settles_survives_the_daemon_and_is_undone(daemon: DaemonUnderTest) -> None:
    daemon.start(OOM_ABOVE_085)
    settled = daemon.until("m/0", lambda worker: worker["run"] == 3 and worker["ready"])
    assert settled["adapted"] == ["gpu-memory-utilization 0.9 -> 0.87", "gpu-memory-utilization 0.87 -> 0.84"]
    assert "--gpu-memory-utilization 0.84" in arguments_of(settled)
    assert settled["memory"][0]["claim_bytes"] < 0.85 * 80 * 1024**3

    daemon.kill()
    daemon.start(OOM_ABOVE_085)
    again = daemon.until("m/0", lambda worker: worker["ready"])
    fix = daemon.ctl("why", "--fix", "m/0").stdout
    status = daemon.ctl("status").stdout
    runs = json.loads(daemon.ctl("why", "m/0", "-o", "json").stdout)["runs"]

    assert (again["pid"], again["adapted"]) == (settled["pid"], settled["adapted"])
    assert fix == "[pool.m]\ngpu-memory-utilization = 0.84\n"
    assert "adapted: gpu-memory-utilization 0.9 -> 0.87, gpu-memory-utilization 0.87 -> 0.84" in " ".join(
        status.split()
    )
    assert all("ran out of memory while serving" in run["reason"] for run in runs)
    assert [run["step"] for run in runs] == list(reversed(settled["adapted"]))
    memory = [run["memory"][0] for run in runs]
    assert [one["claim_bytes"] / one["total_bytes"] for one in memory] == pytest.approx([0.87, 0.9], abs=1e-6)
    assert daemon.ctl("reset", "m/0", "--no-wait").returncode == 0
    undone = daemon.until("m/0", lambda worker: worker["run"] >= 4 and worker["pid"] is not None)
    assert undone["run"] > 4 or "--gpu-memory-utilization 0.9" in arguments_of(undone)


def test_graphs_that_find_no_room_beside_the_claim_get_it_step_by_step(daemon: DaemonUnderTest) -> None:
    daemon.start(GRAPHS_NEED_6_GIB)
    settled = daemon.until("m/0", lambda worker: worker["ready"])

    assert settled["adapted"] == ["gpu-memory-utilization 0.95 -> 0.92", "gpu-memory-utilization 0.92 -> 0.89"]
    assert settled["last_exit"]["cause"] == "gpu-oom-startup"
    runs = json.loads(daemon.ctl("why", "m/0", "-o", "json").stdout)["runs"]
    assert "6.00 GiB asked, 5.83 GiB of 79.65 GiB free" in runs[0]["reason"]


def test_a_context_that_does_not_fit_becomes_the_length_that_the_engine_names(daemon: DaemonUnderTest) -> None:
    daemon.start(TOO_LONG)

    worker = daemon.until("m/0", lambda worker: worker["ready"])

    assert worker["last_exit"]["cause"] == "kv-cache-too-small"
    assert worker["adapted"][0].startswith("max-model-len 32768 -> 2")
    assert f"--max-model-len {worker['adapted'][0].split()[-1]}" in arguments_of(worker)
