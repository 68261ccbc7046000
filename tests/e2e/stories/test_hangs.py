"""Stories of engines that stop working while their server says 200, and of one that only has much to do."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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


def test_a_stop_while_a_hung_run_is_killed_is_followed_and_the_hang_stays_the_cause(daemon: DaemonUnderTest) -> None:
    daemon.start(WATCHED)
    before = daemon.all_ready()["m/0"]
    keeper = psutil.Process(before["keeper_pid"])

    for process in psutil.Process(before["pid"]).children(recursive=True):
        process.suspend()
    keeper.suspend()  # the kill takes as long as this lasts
    daemon.until("m/0", lambda worker: worker["phase"] == "stopping")
    daemon.call("stop", {"targets": ["m/0"]})
    keeper.resume()
    rests = daemon.until("m/0", lambda worker: worker["phase"] == "stopped")

    assert (rests["goal"], rests["reason"].startswith("stopped by command")) == ("down", True)
    assert (rests["last_exit"]["cause"], rests["last_exit"]["ended_by"]) == ("hang", "hang")
    assert rests["last_exit"]["evidence"]


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


def freeze(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def engine_of(worker: dict[str, Any]) -> list[int]:
    return [process.pid for process in psutil.Process(worker["pid"]).children(recursive=True)]


def liveness_of(daemon: DaemonUnderTest) -> str:
    report = daemon.worker("m/0")["liveness"]
    return str(report["state"]) if report else ""


def outlives(daemon: DaemonUnderTest, seconds: float) -> None:
    """The run goes on for so long, longer than any hang would take to be found."""
    began_s = daemon.worker("m/0")["uptime_s"]
    eventually(lambda: daemon.worker("m/0")["uptime_s"] > began_s + seconds, within_s=seconds + 10)
    assert (daemon.worker("m/0")["run"], daemon.worker("m/0")["ready"]) == (1, True)


def a_frozen_engine_is_found(daemon: DaemonUnderTest) -> None:
    before = daemon.all_ready()["m/0"]
    eventually(lambda: liveness_of(daemon) == "watched", within_s=30)

    freeze(engine_of(before))
    after = daemon.until("m/0", lambda worker: worker["run"] == 2 and worker["ready"], within_s=40)

    assert after["last_exit"]["cause"] == "hang"


@pytest.mark.parametrize(
    "settings",
    [
        'extra-args = ["--api-key", "secret"]',
        'env = { VLLM_API_KEY = "secret" }',
        'extra-args = ["--runner", "pooling"]',
        'extra-args = ["--served-model-name", "a", "b"]',
    ],
)
def test_a_frozen_engine_is_found_however_it_must_be_asked(daemon: DaemonUnderTest, settings: str) -> None:
    daemon.start(WATCHED.replace('model = "org/m"', f'model = "org/m"\n{settings}'))
    a_frozen_engine_is_found(daemon)


def test_a_worker_that_serves_tls_becomes_ready_and_is_found_when_it_freezes(daemon: DaemonUnderTest) -> None:
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=elsewhere", "-days", "2"]
    words += ["-keyout", str(daemon.root / "k.pem"), "-out", str(daemon.root / "c.pem")]
    subprocess.run(words, check=True, capture_output=True, timeout=30)
    files = f'"--ssl-keyfile", "{daemon.root}/k.pem", "--ssl-certfile", "{daemon.root}/c.pem"'
    daemon.start(WATCHED.replace('model = "org/m"', f'model = "org/m"\nextra-args = [{files}]'))
    a_frozen_engine_is_found(daemon)


def test_a_server_that_answers_nothing_is_found_and_described_as_that(daemon: DaemonUnderTest) -> None:
    daemon.start(WATCHED)
    before = daemon.all_ready()["m/0"]

    freeze([before["pid"]])
    daemon.until("m/0", lambda worker: worker["run"] == 2 and worker["ready"], within_s=40)

    reason = daemon.call("why", {"worker": "m/0"})["runs"][0]["reason"]
    assert "does not answer HTTP at all" in reason
    assert "token" not in reason


def test_a_busy_server_without_counters_is_left_alone_and_says_what_is_not_watched(daemon: DaemonUnderTest) -> None:
    daemon.environment["GPUWARD_SIM_TOKEN_S"] = "0.05"
    words = '"--disable-log-stats", "--max-num-seqs", "1"'
    daemon.start(WATCHED.replace('model = "org/m"', f'model = "org/m"\nextra-args = [{words}]'))
    port = daemon.all_ready()["m/0"]["port"]
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            ask(port, "POST", "/v1/completions", {"model": "org/m", "prompt": "x", "max_tokens": 30})

    with ThreadPoolExecutor(4) as clients:
        for _ in range(4):
            clients.submit(client)
        outlives(daemon, 5)
        over.set()

    assert liveness_of(daemon) == "partly"
    assert any("--disable-log-stats" in sentence for sentence in daemon.call("why", {"worker": "m/0"})["sentences"])


@pytest.mark.parametrize("how", ["/sleep", "/pause"])
def test_an_engine_that_sleeps_or_is_paused_is_left_alone(daemon: DaemonUnderTest, how: str) -> None:
    daemon.environment["VLLM_SERVER_DEV_MODE"] = "1"
    daemon.start(WATCHED)
    port = daemon.all_ready()["m/0"]["port"]

    assert ask(port, "POST", how) == 200
    eventually(lambda: liveness_of(daemon) == "asleep", within_s=30)  # seen at each seventh look at a paused one
    outlives(daemon, 5)

    assert ask(port, "POST", "/wake_up") == 200
    eventually(lambda: liveness_of(daemon) == "watched", within_s=30)


ENGINES = """
import http.server, itertools, os, sys
steps = itertools.count()
class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        frozen = os.path.exists(sys.argv[2])
        counts = {"0": (next(steps), 3), "1": (5, 2) if frozen else (next(steps), 0)}
        lines = [
            f'vllm:{name}{{engine="{engine}"}} {value}\\n'
            for engine, count in counts.items()
            for name, value in zip(("generation_tokens_total", "num_requests_running"), count)
        ]
        self.send_response(200)
        self.end_headers()
        self.wfile.write("".join(lines).encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Server).serve_forever()
"""


def test_one_frozen_engine_of_two_is_found_although_the_other_works(daemon: DaemonUnderTest) -> None:
    script, frozen = daemon.write("engines.py", ENGINES), daemon.root / "frozen"
    command = [sys.executable, str(script), "{port}", str(frozen)]
    fleet = WATCHED.replace('model = "org/m"', f'engine = "command"\ncommand = {command}')
    url = 'ready-url = "http://127.0.0.1:{port}/health"'
    daemon.start(fleet.replace("[pool.m.liveness]", f'{url}\n[pool.m.liveness]\nprobe = "on"'))
    daemon.all_ready()
    outlives(daemon, 2)

    frozen.touch()
    daemon.until("m/0", lambda worker: worker["last_exit"] is not None)

    run = daemon.call("why", {"worker": "m/0"})["runs"][-1]
    assert run["cause"] == "hang"
    assert "its engine 1, one of 2, has 2 requests and makes no progress" in run["reason"]


def test_an_idle_worker_is_asked_seldom_and_looks_at_its_counters_are_not_in_its_log(daemon: DaemonUnderTest) -> None:
    daemon.start(WATCHED)
    daemon.all_ready()

    outlives(daemon, 6)

    log = daemon.call("logs", {"worker": "m/0"})["text"]
    assert 2 <= log.count("POST /v1/completions") <= 6
    assert "/metrics" not in log
    assert "/health" not in log


def test_an_engine_that_dies_of_its_first_request_never_was_ready(daemon: DaemonUnderTest) -> None:
    daemon.environment["GPUWARD_SIM_FAULT"] = "first-request"
    daemon.start(WATCHED + "max-failures = 1\nwindow-s = 600\n")

    daemon.until("m/0", lambda worker: worker["phase"] == "failed")

    kinds = [event["kind"] for event in daemon.call("events", {"limit": 1000})["events"]]
    assert "worker-ready" not in kinds
    assert kinds.count("worker-starting") == 2
    run = daemon.call("why", {"worker": "m/0"})["runs"][0]
    assert any("head_dim=16" in line for line in run["evidence"])
