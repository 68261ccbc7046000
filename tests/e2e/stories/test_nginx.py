"""Stories of a real nginx in front of two workers, and of clients that never pause: no request is lost."""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Callable, Iterator

import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.e2e.stories.proxied import NGINX, Proxied, needs_nginx
from tests.waiting import eventually

pytestmark = pytest.mark.e2e


@pytest.fixture
def proxied(daemon: DaemonUnderTest) -> Iterator[Proxied]:
    proxy = Proxied(daemon)
    yield proxy
    proxy.close()


def done(daemon: DaemonUnderTest, *words: str) -> None:
    ended = daemon.ctl(*words)
    assert ended.returncode == 0, ended.stderr


def rolled(proxied: Proxied) -> None:
    new = proxied.daemon.write("new.toml", proxied.fleet("max-model-len = 4096"))
    done(proxied.daemon, "roll", "m", str(new))
    assert {one["run"] for one in proxied.daemon.workers().values()} == {2}


def killed(proxied: Proxied) -> None:
    proxied.daemon.kill()
    proxied.daemon.start(config=proxied.config)
    proxied.daemon.all_ready()


EVENTS: dict[str, Callable[[Proxied], None]] = {
    "restart": lambda proxied: done(proxied.daemon, "restart", "m/0"),
    "roll": lambda proxied: done(proxied.daemon, "roll", "m"),
    "roll-changed": rolled,
    "scale": lambda proxied: [done(proxied.daemon, "scale", f"m={count}") for count in (3, 1, 2)] and None,
    "reexec": lambda proxied: done(proxied.daemon, "daemon", "reexec"),
    "kill": killed,
}


@needs_nginx
@pytest.mark.parametrize("event", EVENTS)
def test_no_request_is_lost(proxied: Proxied, event: str) -> None:
    proxied.start()

    clients = proxied.during(lambda: EVENTS[event](proxied))

    assert (clients.failed, clients.aborted) == ([], 0)
    assert proxied.daemon.all_ready()


@needs_nginx
def test_a_daemon_that_is_killed_during_a_drain_loses_no_request(daemon: DaemonUnderTest) -> None:
    proxied = Proxied(daemon, token_s=0.1)

    def killed_during_a_drain() -> None:
        done(daemon, "restart", "m/0", "--no-wait")
        port = daemon.until("m/0", lambda worker: "running" in worker["reason"])["port"]
        daemon.kill()
        daemon.start(config=proxied.config)
        assert running(port) > 0, "the drain was over before the next daemon came"
        daemon.until("m/0", lambda worker: worker["run"] == 2 and worker["ready"])

    try:
        proxied.start()
        clients = proxied.during(killed_during_a_drain)
    finally:
        proxied.close()

    assert (clients.failed, clients.aborted) == ([], 0)


@needs_nginx
def test_without_endpoints_and_drain_requests_are_lost(proxied: Proxied) -> None:
    proxied.start(listed=False, more='extra-args = ["--shutdown-timeout", "0"]')

    clients = proxied.during(lambda: EVENTS["restart"](proxied))

    assert len(clients.failed) + clients.aborted > 0


@needs_nginx
def test_a_worker_that_dies_and_a_pool_that_leaves_are_out_of_the_files_that_nginx_takes(proxied: Proxied) -> None:
    proxied.start()
    daemon = proxied.daemon

    daemon.ctl("stop", "m/0")
    one_left = proxied.upstream()
    daemon.ctl("stop", "m")
    nobody = proxied.upstream()
    checked = subprocess.run(
        [str(NGINX), "-p", daemon.root, "-c", daemon.root / "nginx.conf", "-t"], capture_output=True, check=False
    )

    assert (one_left.count("server 127"), "m/1" in one_left) == (1, True)
    assert "server 127.0.0.1:9 down;" in nobody
    assert checked.returncode == 0, checked.stderr


def test_status_tells_how_many_requests_a_worker_still_works_on(daemon: DaemonUnderTest) -> None:
    daemon.environment["GPUWARD_SIM_TOKEN_S"] = "0.05"
    daemon.start('[pool.m]\nmodel = "org/m"\n')
    port = daemon.all_ready()["m/0"]["port"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", "/v1/completions", json.dumps({"prompt": "a", "max_tokens": 60, "ignore_eos": True}))
    eventually(lambda: running(port) == 1, within_s=5)

    daemon.ctl("stop", "m/0", "--no-wait")
    told = daemon.until("m/0", lambda worker: "1 request running" in worker["reason"])
    answer = json.loads(connection.getresponse().read())
    connection.close()

    assert "draining, 1 request running; SIGKILL follows 40 s after SIGTERM" in told["reason"]
    assert answer["choices"][0]["finish_reason"] == "length"


def running(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("vllm:num_requests_running{"))
