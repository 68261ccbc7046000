"""Stories of workers that leave the fleet and take their time."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.daemon import DaemonUnderTest

pytestmark = pytest.mark.e2e

SLOW = """
[pool.w]
engine = "command"
command = ["/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"]
ready-log = "up"
workers = 2
stop-timeout-s = 4
"""


def test_who_leaves_the_fleet_is_not_started_again_and_stops_with_all(daemon: DaemonUnderTest) -> None:
    daemon.start(SLOW)
    leaves = daemon.all_ready()["w/1"]
    assert daemon.ctl("scale", "w=1", "-y", "--no-wait").returncode == 0

    started, all_of_it = daemon.ctl("start", "w/1"), daemon.ctl("start", "w")
    stopped = daemon.ctl("stop", "--all", "-y")

    assert (started.returncode, all_of_it.returncode) == (6, 0)
    assert "w/1 left the fleet and is being stopped" in " ".join(started.stderr.split())
    assert stopped.returncode == 0
    assert not Path(f"/proc/{leaves['pid']}").exists()
