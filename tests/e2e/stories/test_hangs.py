"""Stories of engines that stop working while their server says 200, and of one that only has much to do."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

pytestmark = pytest.mark.e2e

WATCHED = """
[pool.m]
model = "org/m"
gpus-per-worker = 1
[pool.m.liveness]
interval-s = 0.3
misses = 2
[pool.m.restart]
delay-first-s = 0.05
"""


def ask(port: int, method: str, path: str, document: object = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, None if document is None else json.dumps(document))
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def test_a_frozen_engine_with_health_200_is_killed_whole_and_comes_back(daemon: DaemonUnderTest) -> None:
    daemon.start(WATCHED)
    before = daemon.all_ready()["m/0"]
    tree = psutil.Process(before["pid"]).children(recursive=True)

    for process in tree:
        os.kill(process.pid, signal.SIGSTOP)
    assert ask(before["port"], "GET", "/health") == 200
    after = daemon.until("m/0", lambda worker: worker["run"] == 2 and worker["ready"])

    assert after["last_exit"]["cause"] == "hang"
    run = daemon.call("why", {"worker": "m/0"})["runs"][0]
    assert "has not generated the one token that it was asked for" in run["reason"]
    assert not any(process.is_running() and process.status() != "zombie" for process in tree)


def test_a_server_with_more_requests_than_it_can_serve_is_left_alone(daemon: DaemonUnderTest) -> None:
    daemon.environment["GPUWARD_SIM_TOKEN_S"] = "0.05"
    daemon.start(WATCHED.replace('model = "org/m"', 'model = "org/m"\nextra-args = ["--max-num-seqs", "1"]'))
    before = daemon.all_ready()["m/0"]
    asked, over = threading.Event(), threading.Event()

    def client() -> None:
        while not over.is_set():
            ask(before["port"], "POST", "/v1/completions", {"model": "org/m", "prompt": "x", "max_tokens": 10})
            asked.set()

    with ThreadPoolExecutor(6) as clients:
        for _ in range(6):
            clients.submit(client)
        eventually(asked.is_set, within_s=5)
        begun_s = daemon.worker("m/0")["uptime_s"]
        eventually(lambda: daemon.worker("m/0")["uptime_s"] > begun_s + 2.5, within_s=10)
        over.set()

    after = daemon.worker("m/0")
    assert (after["run"], after["ready"]) == (1, True)
