"""Upgrade in place: another version goes on in the daemon's process, and no worker notices."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

import gpuward
from gpuward.control.client import Refused, Unreachable

pytestmark = pytest.mark.e2e

FLEET = """
[pool.s]
engine = "command"
command = ["/bin/sleep", "1000"]
gpus-per-worker = 1
workers = 3
ready-after-s = 0.05
"""


class Installation:
    """A copy of the package that a daemon runs from, to be changed under it."""

    def __init__(self, daemon: DaemonUnderTest) -> None:
        self.package = daemon.root / "installed" / "gpuward"
        source = Path(gpuward.__file__).parent
        shutil.copytree(source, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        daemon.environment["PYTHONPATH"] = str(self.package.parent)
        daemon.program = (sys.executable, "-m", "gpuward")

    def change(self, file: str, pattern: str, replacement: str) -> None:
        path = self.package / file
        text, count = re.subn(pattern, replacement, path.read_text(), count=1)
        assert count == 1, (file, pattern)
        path.write_text(text)

    def upgrade(self) -> None:
        """Version N+1: a worker's record has a key more, which records of version N are given on the way."""
        self.change("__init__.py", r'__version__ = ".*"', '__version__ = "99.0"')
        self.change("host/versions.py", r"\nVERSION = 1\n", "\nVERSION = 2\n")
        self.change(
            "host/versions.py", r"\nMIGRATIONS: (.*) = \{\}", r"\nMIGRATIONS: \1 = {1: lambda old: {**old, 'new': 7}}"
        )
        self.change("host/records.py", r"    boot_id: str\n", "    boot_id: str\n    new: int = 0\n")
        self.change("host/records.py", r"StoredWorker\(version=VERSION,", "StoredWorker(version=VERSION, new=8,")


def pids(daemon: DaemonUnderTest) -> dict[str, int]:
    return {name: worker["pid"] for name, worker in daemon.all_ready().items()}


def test_a_new_version_with_other_records_takes_the_place_of_the_old_one(daemon: DaemonUnderTest) -> None:
    installed = Installation(daemon)
    daemon.start(FLEET)
    before = pids(daemon)
    daemon.call("stop", {"targets": ["s/2"]})
    daemon.until("s/2", lambda worker: worker["phase"] == "stopped")
    installed.upgrade()

    told = daemon.ctl("daemon", "reexec", "-o", "json")
    after = daemon.workers()
    status = daemon.call("status")["daemon"]
    daemon.call("start", {"targets": ["s/2"]})
    daemon.all_ready()

    assert told.returncode == 0, told.stderr
    assert (json.loads(told.stdout)["version"], status["version"], status["notices"]) == ("99.0", "99.0", [])
    assert daemon.process is not None
    assert status["pid"] == daemon.process.pid
    assert {name: after[name]["pid"] for name in ("s/0", "s/1")} == {name: before[name] for name in ("s/0", "s/1")}
    assert after["s/2"]["phase"] == "stopped"
    record = json.loads((daemon.root / "st" / "workers" / "s" / "2.json").read_text())
    assert (record["version"], record["new"]) == (2, 8)


def test_a_program_that_does_not_run_replaces_nothing(daemon: DaemonUnderTest) -> None:
    installed = Installation(daemon)
    daemon.start(FLEET)
    before = pids(daemon)
    (installed.package / "app.py").write_text("this is no Python\n")

    told = daemon.ctl("daemon", "reexec")

    assert told.returncode == 6
    assert "SyntaxError" in told.stderr
    assert f"gpuward {gpuward.__version__} goes on" in told.stderr
    assert pids(daemon) == before


def test_a_run_that_ends_during_the_upgrade_is_learnt_by_the_new_version(daemon: DaemonUnderTest) -> None:
    daemon.start(FLEET + "[pool.s.restart]\ndelay-first-s = 0.05\n")
    before = daemon.all_ready()

    daemon.call("reexec", {})
    _kill(before["s/0"]["pid"])
    again = eventually(lambda: _again(daemon, "s/0"), within_s=20)

    assert (again["last_exit"]["signal"], again["restarts"]) == (signal.SIGKILL, 1)
    assert daemon.worker("s/1")["pid"] == before["s/1"]["pid"]


def test_a_detached_daemon_is_gone_and_its_workers_are_the_next_ones(daemon: DaemonUnderTest) -> None:
    daemon.start(FLEET)
    before = pids(daemon)

    told = daemon.ctl("daemon", "detach")
    assert daemon.process is not None
    code = daemon.process.wait(20)
    daemon.start(FLEET)

    assert (told.returncode, code) == (0, 0)
    assert "3 workers kept running" in told.stdout
    assert pids(daemon) == before


def test_an_older_or_newer_client_is_told_the_versions(daemon: DaemonUnderTest) -> None:
    daemon.start(FLEET)
    from gpuward.control import zmtp

    connection = zmtp.Connection(daemon.socket, "DEALER", timeout_s=5)
    connection.send(b"", b'{"v": 0, "id": "x", "op": "status", "args": {}}', timeout_s=5)
    answer = json.loads(connection.receive(timeout_s=5)[-1])
    connection.close()

    assert answer["error"]["code"] == "bad-protocol"
    assert "version 0" in answer["error"]["message"]
    assert "speaks 1" in answer["error"]["message"]


def _kill(pid: int) -> None:
    import os

    os.kill(pid, signal.SIGKILL)


def _again(daemon: DaemonUnderTest, name: str) -> dict[str, object] | None:
    """The worker in its second run, from whichever version answers."""
    try:
        worker = daemon.worker(name)
    except (Unreachable, Refused, KeyError):
        return None
    return worker if worker["run"] == 2 and worker["ready"] else None
