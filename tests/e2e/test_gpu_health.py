"""Memory limits and the health of GPUs with a real daemon on a simulated host."""

from __future__ import annotations

import pytest
from tests.e2e.daemon import DaemonUnderTest

pytestmark = pytest.mark.e2e

GIB = 1024**3
FAST = "[inventory]\nsample-interval-s = 0.2\n"
HOLDER = """
[pool.m]
engine = "command"
command = ["/bin/sleep", "1000"]
gpus-per-worker = 1
gpu-memory-utilization = 0.5
ready-after-s = 0.05
on-breach = "{on_breach}"
stop-timeout-s = 5
"""


def holds(daemon: DaemonUnderTest, pid: int, gib: int, gpu: int = 0) -> None:
    """Let a process claim simulated memory, as any program on a simulated host may."""
    claims = daemon.root / "rt" / "sim-claims"
    draft = claims / f".{pid}.draft"
    draft.write_text(f"{gpu} {gib * GIB}\n")
    draft.rename(claims / str(pid))


def kinds(daemon: DaemonUnderTest) -> list[str]:
    return [event["kind"] for event in daemon.call("events", {"limit": 1000})["events"]]


def test_a_worker_beyond_its_claim_is_warned_about_and_left_alone(daemon: DaemonUnderTest) -> None:
    daemon.start(HOLDER.format(on_breach="warn"), config=FAST)
    before = daemon.all_ready()["m/0"]

    holds(daemon, before["pid"], 60)
    warned = daemon.until("m/0", lambda worker: bool(worker["warnings"]))

    assert "holds 60.0 GiB on GPU 0: more than its claim of 39.8 GiB" in warned["warnings"][0]
    assert "memory-breach" in kinds(daemon)
    assert (warned["pid"], warned["phase"]) == (before["pid"], "ready")
    holds(daemon, before["pid"], 39)
    daemon.until("m/0", lambda worker: not any("claim" in one for one in worker["warnings"]))
    assert "memory-breach-over" in kinds(daemon)


def test_a_pool_that_says_restart_gets_a_fresh_run_and_the_samples_of_the_old_one(daemon: DaemonUnderTest) -> None:
    daemon.start(HOLDER.format(on_breach="restart"), config=FAST)
    before = daemon.all_ready()["m/0"]

    holds(daemon, before["pid"], 60)
    after = daemon.until("m/0", lambda worker: worker["ready"] and worker["run"] == 2)

    assert (after["restarts"], after["goal"]) == (1, "up")
    run = daemon.call("why", {"worker": "m/0"})["runs"][0]
    uuid = after["gpu_uuids"][0]
    assert run["peak_bytes"] == {uuid: 60 * GIB}
    assert [sample["used_bytes"].get(uuid) for sample in run["samples"]][-1] == 60 * GIB
    assert 3 <= len(run["samples"]) <= 120


def test_a_pool_that_says_drain_stays_down_with_the_reason_until_started(daemon: DaemonUnderTest) -> None:
    daemon.start(HOLDER.format(on_breach="drain"), config=FAST)
    before = daemon.all_ready()["m/0"]

    holds(daemon, before["pid"], 60)
    drained = daemon.until("m/0", lambda worker: worker["phase"] == "stopped")

    assert drained["goal"] == "up"
    assert 'on-breach is "drain"' in drained["reason"]
    daemon.call("start", {"targets": ["m"]})
    daemon.until("m/0", lambda worker: worker["ready"] and worker["run"] == 2)
