"""Stories of directories that are full, broken or gone: workers are supervised, a command keeps its word."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator

import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.e2e.small_disk import SmallDisk
from tests.waiting import eventually

pytestmark = pytest.mark.e2e

TWO = """
[pool.m]
model = "org/m"
workers = 2
gpus-per-worker = 1
"""


@pytest.fixture
def disk(daemon: DaemonUnderTest) -> Iterator[SmallDisk]:
    """A small file system under the state directory of the daemon."""
    small = SmallDisk(daemon.root / "st")
    yield small
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.stop()
    small.close()


@pytest.fixture
def log_disk(daemon: DaemonUnderTest) -> Iterator[SmallDisk]:
    """A small file system under the directory of the logs."""
    (daemon.root / "st").mkdir()
    small = SmallDisk(daemon.root / "st" / "logs")
    yield small
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.stop()
    small.close()


def notices(daemon: DaemonUnderTest) -> str:
    return " | ".join(daemon.call("status")["daemon"]["notices"])


def test_a_stop_on_a_full_disk_holds_for_the_next_daemon(daemon: DaemonUnderTest, disk: SmallDisk) -> None:
    daemon.start(TWO)
    daemon.all_ready()
    disk.fill()

    stopped = daemon.ctl("stop", "m/0")
    told = notices(daemon)
    daemon.kill()
    disk.clear()
    daemon.start()
    daemon.until("m/1", lambda worker: worker["ready"])

    assert stopped.returncode == 0, stopped.stderr
    assert "cannot save the state of m/0: No space left on device" in told
    assert (daemon.worker("m/0")["phase"], daemon.worker("m/0")["goal"]) == ("stopped", "down")


def test_a_full_disk_does_not_keep_a_killed_worker_from_coming_back(daemon: DaemonUnderTest, disk: SmallDisk) -> None:
    daemon.start(TWO)
    daemon.all_ready()
    disk.fill()

    os.kill(daemon.worker("m/0")["pid"], signal.SIGKILL)
    daemon.until("m/0", lambda worker: worker["ready"] and worker["run"] == 2)
    scaled = daemon.ctl("scale", "m=1")

    assert scaled.returncode == 1
    assert "nothing was applied: the fleet cannot be saved: No space left on device" in scaled.stderr
    assert [worker["ready"] for worker in daemon.workers().values()] == [True, True]


def test_a_stop_that_cannot_be_saved_at_all_is_done_and_says_what_it_is_worth(daemon: DaemonUnderTest) -> None:
    daemon.start(TWO)
    daemon.all_ready()
    goal = daemon.root / "st" / "workers" / "m" / "0.goal"
    goal.unlink()
    goal.mkdir()

    stopped = daemon.ctl("stop", "m/0")
    daemon.until("m/0", lambda worker: worker["phase"] == "stopped")

    assert stopped.returncode == 1
    told = "stop is under way, but cannot save that m/0 is wanted down (Is a directory)"
    assert told in " ".join(stopped.stderr.split())
    assert "m/0" in notices(daemon)


def test_a_state_directory_that_is_deleted_is_made_again_with_the_next_word(daemon: DaemonUnderTest) -> None:
    daemon.start(TWO)
    daemon.all_ready()
    shutil.rmtree(daemon.root / "st")

    stopped = daemon.ctl("stop", "m/0")
    daemon.kill()
    daemon.start()
    worker = daemon.until("m/0", lambda worker: worker["phase"] == "stopped")

    assert stopped.returncode == 0, stopped.stderr
    assert worker["goal"] == "down"
    daemon.until("m/1", lambda worker: worker["ready"])


SAYS_UP = """
[pool.u]
engine = "command"
command = ["/bin/sh", "-c", "echo up; exec sleep 1000"]
gpus-per-worker = 0
ready-log = "^up"
start-timeout-s = 4
stop-timeout-s = 1
[pool.u.restart]
max-failures = 0
"""


def test_output_that_a_full_disk_loses_is_told_and_named_where_a_start_waits_for_it(
    daemon: DaemonUnderTest, log_disk: SmallDisk
) -> None:
    log_disk.fill()
    daemon.start(SAYS_UP)

    waits = daemon.until("u/0", lambda worker: "being lost" in worker["reason"])
    told = eventually(lambda: "output of run 1 of u/0 was lost" in notices(daemon), within_s=10)
    failed = daemon.until("u/0", lambda worker: worker["phase"] == "failed")
    run = daemon.call("why", {"worker": "u/0"})["runs"][0]
    log_disk.clear()
    daemon.call("start", {"targets": ["u/0"]})
    daemon.until("u/0", lambda worker: worker["ready"])

    last = "waits for a line of output that matches '^up', but its output is being lost (No space left on device)"
    assert waits["reason"].startswith(last)
    assert told
    assert failed["last_exit"]["cause"] == "start-timeout"
    assert f"last: {last}" in run["reason"]
    assert run["log_lost_bytes"] == len("up\n")
    assert "3 bytes of its output were lost" in daemon.ctl("why", "u/0").stdout
    assert "3 bytes of the output of run 1 of u/0 were lost" in daemon.ctl("logs", "u/0", "--run", "1").stderr
    kinds = [event["kind"] for event in daemon.call("events", {"limit": 1000})["events"]]
    assert kinds.count("output-lost") == 2
    eventually(lambda: "was lost" not in notices(daemon), within_s=10)


@pytest.mark.parametrize("beside", [True, False], ids=["but beside the log", "nor beside the log"])
def test_an_end_that_cannot_be_written_in_the_run_directory(daemon: DaemonUnderTest, beside: bool) -> None:
    daemon.start(SAYS_UP.replace("exec sleep 1000", "sleep 1000; exit 9"))
    worker = daemon.all_ready()["u/0"]
    reserved = daemon.root / "rt" / "runs" / "u" / "0" / "1" / ".end.new"
    reserved.unlink()
    reserved.mkdir()
    if not beside:
        (daemon.root / "st" / "logs" / "u" / "0" / "1.log.end").mkdir()

    os.kill(worker["pid"], signal.SIGSEGV)
    last = daemon.until("u/0", lambda worker: worker["phase"] == "failed")["last_exit"]

    assert last["signal"] == (signal.SIGSEGV if beside else None)
    assert ("its keeper could not write how" in last["reason"]) is not beside
    assert "keeper was killed" not in last["reason"]
