"""Stories of several workers on one GPU: refused, and one after the other where it is asked for."""

from __future__ import annotations

import pytest
from tests.e2e.daemon import DaemonUnderTest

from gpuward.control.client import Refused

pytestmark = pytest.mark.e2e

THREE_ON_ONE = """
[pool.m]
model = "org/m"
workers = 3
gpus-per-worker = 1
gpus = [0]
"""
SHARED = f"{THREE_ON_ONE}share = true\ngpu-memory-utilization = "


def test_three_workers_on_one_gpu_are_refused_with_the_sum_and_start_one_by_one_where_they_fit(
    daemon: DaemonUnderTest,
) -> None:
    daemon.start()
    for text, part in ((THREE_ON_ONE, "3 workers"), (f"{SHARED}0.4", "1.2")):
        with pytest.raises(Refused) as refused:
            daemon.call("apply", {"text": text, "name": "f.toml", "directory": "/"})
        assert part in str(refused.value)

    daemon.call("apply", {"text": f"{SHARED}0.3", "name": "f.toml", "directory": "/"})
    workers = daemon.all_ready()

    assert {worker["run"] for worker in workers.values()} == {1}
    changes = [
        event for event in daemon.call("events")["events"] if event["kind"] in {"worker-starting", "worker-ready"}
    ]
    kinds = [(event["kind"], event["worker"]) for event in changes]
    assert kinds == [(kind, f"m/{index}") for index in range(3) for kind in ("worker-starting", "worker-ready")]


def test_a_restart_beside_a_starting_neighbour_waits_and_breaks_nobody(daemon: DaemonUnderTest) -> None:
    daemon.environment["GPUWARD_SIM_START_S"] = "1.0"
    daemon.start(f"{SHARED}0.3".replace("workers = 3", "workers = 2"))
    daemon.until("m/0", lambda worker: worker["ready"])

    daemon.call("restart", {"targets": ["m/0"]})
    waiting = daemon.worker("m/0")
    why = daemon.call("why", {"worker": "m/0"})["sentences"]
    daemon.until("m/0", lambda worker: worker["run"] == 2 and worker["ready"])

    assert "waits for m/1 to be ready first" in waiting["reason"]
    assert any("waits for m/1 to be ready first" in sentence for sentence in why)
    assert daemon.worker("m/1")["run"] == 1
