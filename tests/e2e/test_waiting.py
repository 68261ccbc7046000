"""Who waits for a command waits on while the daemon is replaced, and gets the answer from the next one."""

from __future__ import annotations

import os
import subprocess

import pytest
from tests.e2e.daemon import CTL, DaemonUnderTest

pytestmark = pytest.mark.e2e

FLEET = """
[pool.s]
engine = "command"
command = ["/bin/sleep", "1000"]
gpus-per-worker = 1
workers = 2
ready-after-s = 1.5
"""


def a_waiting_restart(daemon: DaemonUnderTest) -> subprocess.Popen[str]:
    """A gpuctl that waits for a worker which is starting by now."""
    command = [CTL, "--socket", daemon.socket, "restart", "s/0"]
    waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    daemon.until("s/0", lambda worker: worker["run"] == 2)
    return waiting


def test_a_command_that_waits_is_answered_by_the_daemon_that_comes_after_a_crash(daemon: DaemonUnderTest) -> None:
    daemon.start(FLEET)
    daemon.all_ready()
    waiting = a_waiting_restart(daemon)

    daemon.kill()
    daemon.start()
    out, err = waiting.communicate(timeout=30)

    assert (waiting.returncode, err) == (0, "")
    assert "restart: 1 worker done" in out


def test_a_command_that_waits_is_answered_by_the_version_that_takes_over(daemon: DaemonUnderTest) -> None:
    daemon.start(FLEET)
    daemon.all_ready()
    waiting = a_waiting_restart(daemon)

    replaced = daemon.ctl("daemon", "reexec")
    out, err = waiting.communicate(timeout=30)

    assert replaced.returncode == 0
    assert (waiting.returncode, err) == (0, "")
    assert "restart: 1 worker done" in out


def test_commands_are_numbered_on_over_the_end_of_a_daemon(daemon: DaemonUnderTest) -> None:
    daemon.start(FLEET)
    first = daemon.call("restart", {"targets": ["s/0"]})["operation"]

    daemon.kill()
    daemon.start()
    second = daemon.call("restart", {"targets": ["s/1"]})["operation"]

    assert first != second
    assert daemon.call("operation", {"id": first})["workers"][0]["name"] == "s/0"
