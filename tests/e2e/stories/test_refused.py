"""The story of a start that is refused for as long as somebody else listens on the worker's port."""

from __future__ import annotations

import socket

import pytest
from tests.e2e.daemon import DaemonUnderTest

pytestmark = pytest.mark.e2e

ON_A_PORT = """
[pool.m]
model = "org/m"
gpus-per-worker = 1
port = {port}
"""


def test_a_port_that_is_taken_is_waited_for_under_one_run_number_and_with_few_words(daemon: DaemonUnderTest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        daemon.start(ON_A_PORT.format(port=port))
        refused = daemon.until("m/0", lambda worker: "refusal 2, tries again in 1." in worker["reason"])

    ready = daemon.until("m/0", lambda worker: worker["ready"])

    assert f"waits for port {port}: pid " in refused["reason"]
    assert (refused["run"], ready["run"], ready["restarts"]) == (0, 1, 0)
    starts = [event["run"] for event in daemon.call("events")["events"] if event["kind"] == "worker-starting"]
    assert starts == [1, 1, 1]
