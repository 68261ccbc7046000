"""Stories of a state directory that is full, broken or gone: workers are supervised, a command keeps its word."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.daemon import DaemonUnderTest

pytestmark = pytest.mark.e2e

TWO = """
[pool.m]
model = "org/m"
workers = 2
gpus-per-worker = 1
"""


class SmallDisk:
    """A file system of 512 KiB and 200 inodes of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=512k,nr_inodes=200", "tmpfs", path], capture_output=True, check=False
        )
        if mounted.returncode != 0:
            pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")

    def fill(self) -> None:
        """Leave neither a byte nor an inode."""
        with (self.path / "filler").open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    break
        for number in range(1000):
            try:
                (self.path / f"inode-{number}").touch()
            except OSError:
                return

    def clear(self) -> None:
        for path in (self.path / "filler", *self.path.glob("inode-*")):
            path.unlink(missing_ok=True)


@pytest.fixture
def disk(daemon: DaemonUnderTest) -> Iterator[SmallDisk]:
    """A small file system under the state directory of the daemon."""
    small = SmallDisk(daemon.root / "st")
    yield small
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.stop()
    subprocess.run(["umount", "--lazy", small.path], check=True)


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
