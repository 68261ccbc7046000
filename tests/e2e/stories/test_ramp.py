"""Stories of many workers of one pool: the first cannot start, and one after the other is restarted."""

from __future__ import annotations

import pytest
from tests.e2e.daemon import DaemonUnderTest

pytestmark = pytest.mark.e2e

EIGHT = """
[pool.m]
model = "org/m"
workers = 8
gpus-per-worker = 1
"""
THREE = EIGHT.replace("8", "3")


def test_eight_workers_of_which_the_first_cannot_start_tell_one_reason_not_eight_crashes(
    daemon: DaemonUnderTest,
) -> None:
    daemon.start()
    daemon.write("fleet.toml", EIGHT.replace("org/m", "/no/such/model"))

    applied = daemon.ctl("apply", "fleet.toml")
    workers = daemon.workers()

    assert applied.returncode == 1
    assert [worker["run"] for worker in workers.values()] == [1] + [0] * 7
    assert workers["m/0"]["last_exit"]["cause"] == "config-error"
    for index in range(1, 8):
        assert workers[f"m/{index}"]["reason"].startswith("held: m/0 started first and has failed: ")
        assert "/no/such/model" in workers[f"m/{index}"]["reason"]


def test_a_roll_restarts_each_worker_on_its_gpu_while_the_others_serve(daemon: DaemonUnderTest) -> None:
    daemon.start(THREE)
    before = daemon.all_ready()

    rolled = daemon.ctl("roll", "m")
    after = daemon.workers()

    assert rolled.returncode == 0, rolled.stderr
    assert [worker["run"] for worker in after.values()] == [2, 2, 2]
    assert [worker["gpus"] for worker in after.values()] == [worker["gpus"] for worker in before.values()]
    kinds = [(event["kind"], event["worker"]) for event in daemon.call("events")["events"] if event["run"] == 2]
    assert kinds == [(kind, f"m/{index}") for index in range(3) for kind in ("worker-starting", "worker-ready")]
