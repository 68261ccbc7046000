"""Stories of workers that are not ready in time, and of what is told of them."""

from __future__ import annotations

import pytest
from tests.e2e.daemon import DaemonUnderTest

pytestmark = pytest.mark.e2e


def test_a_worker_that_is_not_ready_in_time_leaves_what_was_missing_in_its_record(daemon: DaemonUnderTest) -> None:
    daemon.environment["GPUWARD_SIM_START_S"] = "60"
    daemon.start(
        '[pool.m]\nmodel = "org/m"\ngpus-per-worker = 1\nstart-timeout-s = 1.5\nstop-timeout-s = 0.2\n'
        "[pool.m.restart]\nmax-failures = 0\n"
    )

    failed = daemon.until("m/0", lambda worker: worker["phase"] == "failed")

    run = daemon.call("why", {"worker": "m/0"})["runs"][0]
    assert run["cause"] == "start-timeout"
    assert run["reason"] == (
        f"not ready within start-timeout-s = 1.5 s: last: nothing listens on port {failed['port']} yet"
    )
