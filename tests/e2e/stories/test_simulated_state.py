"""Stories of a simulated run beside the real host: neither takes the other's state for its own."""

from __future__ import annotations

import pytest
from tests.e2e.daemon import DaemonUnderTest

pytestmark = pytest.mark.e2e

ONE = """
[pool.m]
engine = "command"
command = ["/bin/sleep", "1000"]
gpus-per-worker = 0
ready-after-s = 0
"""


def test_state_of_a_simulated_host_is_refused_for_the_real_one_and_the_other_way_round(daemon: DaemonUnderTest) -> None:
    daemon.start(ONE)
    assert daemon.stop() == 0
    daemon.simulate = None
    assert daemon.process is not None

    daemon.start(ONE, wait=False)

    assert daemon.process.wait(20) == 78
    assert "cannot use " in daemon.log()
    assert "for the real host: it holds what belongs to a simulated one; give another --state-dir" in daemon.log()


def test_a_fleet_file_that_is_not_applied_is_said_in_the_log(daemon: DaemonUnderTest) -> None:
    daemon.start(ONE)
    daemon.stop()

    daemon.start(daemon.write("other.toml", ONE.replace("pool.m", "pool.other")))

    assert list(daemon.workers()) == ["m/0"]
    assert "other.toml differs from the applied revision 1" in daemon.log()
