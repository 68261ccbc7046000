"""Stories of what follows from a cause: give up, hold, move away."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys

import pytest
from tests.e2e.daemon import DaemonUnderTest

pytestmark = pytest.mark.e2e

QUICK = """
[pool.m.restart]
delay-first-s = 0.05
delay-max-s = 0.05
max-failures = {failures}
[pool.m.env]
GPUWARD_SIM_FAULT = "{fault}"
"""


def a_pool(fault: str, failures: int = 5, keys: str = "") -> str:
    return f'[pool.m]\nmodel = "org/m"\ngpus-per-worker = 1\n{keys}\n{QUICK.format(fault=fault, failures=failures)}'


def test_a_crash_loop_gives_up_and_says_the_numbers(daemon: DaemonUnderTest) -> None:
    daemon.start(a_pool("exit:3@start", failures=2))

    worker = daemon.until("m/0", lambda worker: worker["phase"] == "failed")

    assert (worker["run"], worker["last_exit"]["cause"], worker["last_exit"]["code"]) == (3, "crash", 3)
    assert "gave up after 3 failures within 600 s (max-failures is 2)" in worker["reason"]


def test_cuda_faults_on_one_gpu_move_the_worker_to_another(daemon: DaemonUnderTest) -> None:
    daemon.start(a_pool("cuda-fault@run+0.05"))

    daemon.until("m/0", lambda worker: worker["run"] == 2 and worker["gpus"] == [0])
    moved = daemon.until("m/0", lambda worker: worker["run"] == 3)

    assert moved["gpus"] == [1]
    assert moved["last_exit"]["cause"] == "cuda-fault"
    reasons = [event["reason"] for event in daemon.call("events")["events"]]
    assert any("moves from GPU 0 to GPU 1: the second fault within 24 h" in reason for reason in reasons), reasons


def test_on_oom_hold_stops_at_the_first_one_with_what_to_change(daemon: DaemonUnderTest) -> None:
    daemon.start(a_pool("oom@run+0.05", keys='on-oom = "hold"'))

    worker = daemon.until("m/0", lambda worker: worker["phase"] == "failed")

    assert (worker["run"], worker["last_exit"]["cause"]) == (1, "gpu-oom-runtime")
    assert "lower gpu-memory-utilization" in worker["reason"]
    assert worker["reason"].endswith("then gpuctl start m/0")


def test_a_text_that_the_host_file_knows_is_a_cause(daemon: DaemonUnderTest) -> None:
    config = """
[[signatures]]
cause = "config-error"
contains = "no license"
pattern = "no license for (?P<what>.+)"
says = "there is no license for {what}"
hint = "buy one"
permanent = true
"""
    fleet = """
[pool.x]
engine = "command"
command = ["/bin/sh", "-c", "echo no license for eight GPUs; exit 1"]
gpus-per-worker = 0
"""

    daemon.start(fleet, config=config)

    worker = daemon.until("x/0", lambda worker: worker["phase"] == "failed")
    assert worker["last_exit"]["cause"] == "config-error"
    assert worker["reason"].startswith("there is no license for eight GPUs (exit code 1); not tried again; buy one")


def test_a_start_that_fails_twice_with_the_same_error_is_not_tried_a_third_time(daemon: DaemonUnderTest) -> None:
    script = "import os; raise ValueError('no such option in %d' % os.getpid())"
    pool = f'[pool.x]\nengine = "command"\ncommand = ["{sys.executable}", "-c", "{script}"]\ngpus-per-worker = 0\n'
    daemon.start(pool + "[pool.x.restart]\ndelay-first-s = 0.05\n")

    worker = daemon.until("x/0", lambda worker: worker["phase"] == "failed")

    assert (worker["run"], worker["last_exit"]["cause"]) == (2, "config-error")
    assert "first error: ValueError: no such option in" in worker["reason"]
    assert "the start before it failed with the same error" in worker["reason"]


def test_what_a_client_asks_for_is_no_cause_of_an_end(daemon: DaemonUnderTest) -> None:
    daemon.start('[pool.m]\nmodel = "org/m"\ngpus-per-worker = 1\n')
    worker = daemon.all_ready()["m/0"]
    name = "CUDA error: uncorrectable ECC error encountered; GPU has fallen off the bus"

    connection = http.client.HTTPConnection("127.0.0.1", worker["port"], timeout=10)
    connection.request("POST", "/v1/completions", json.dumps({"model": name, "prompt": "x"}))
    assert connection.getresponse().status == 404
    connection.close()
    os.kill(worker["pid"], signal.SIGKILL)

    again = daemon.until("m/0", lambda worker: worker["run"] == 2 and worker["phase"] == "ready")
    assert again["last_exit"]["cause"] == "crash"
    assert not any("ECC" in line for line in again["last_exit"]["evidence"])
