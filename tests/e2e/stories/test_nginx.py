"""Stories of a real nginx in front of two workers, and of clients that never pause: no request is lost."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.e2e.stories.proxied import NGINX, Proxied, needs_nginx, running
from tests.waiting import eventually

pytestmark = pytest.mark.e2e

RELOADED_WITHIN_S = 1.0
"""From the list to an nginx that sends nothing more to who is not in it."""


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
    assert runs(proxied) == [2, 2]


def applied(proxied: Proxied) -> None:
    new = proxied.daemon.write("new.toml", proxied.fleet("max-model-len = 4096"))
    done(proxied.daemon, "apply", str(new))
    assert runs(proxied) == [2, 2]


def reloaded(proxied: Proxied) -> None:
    proxied.daemon.write("fleet.toml", proxied.fleet("max-model-len = 4096"))
    done(proxied.daemon, "reload")
    proxied.daemon.until("m/1", lambda worker: worker["run"] == 2 and worker["ready"])
    assert runs(proxied) == [2, 2]


def scaled(proxied: Proxied) -> None:
    for count in (3, 1, 2):
        done(proxied.daemon, "scale", f"m={count}")
        eventually(lambda count=count: proxied.upstream().count("server 127") == count, within_s=20)  # type: ignore[misc]


def one_stopped(proxied: Proxied) -> None:
    done(proxied.daemon, "stop", "m/0")
    done(proxied.daemon, "start", "m/0")


def moved(proxied: Proxied) -> None:
    done(proxied.daemon, "sim", "xid", "0", "48")
    worker = proxied.daemon.until("m/0", lambda worker: worker["run"] == 2 and worker["ready"])
    assert worker["gpus"] == [2]


def breached(proxied: Proxied) -> None:
    """Its API server holds 20 GiB more than the claim has."""
    claims = proxied.daemon.root / "rt" / "sim-claims"
    (claims / ".draft").write_text(f"0 {20 * 1024**3}\n")
    (claims / ".draft").rename(claims / str(proxied.daemon.worker("m/0")["pid"]))
    worker = proxied.daemon.until("m/0", lambda worker: worker["run"] == 2 and worker["ready"])
    assert worker["last_exit"]["cause"] == "memory-breach"


def killed(proxied: Proxied) -> None:
    proxied.daemon.kill()
    proxied.daemon.start(config=proxied.config)
    proxied.daemon.all_ready()


def runs(proxied: Proxied) -> list[int]:
    return [worker["run"] for worker in proxied.daemon.workers().values()]


EVENTS: dict[str, Callable[[Proxied], object]] = {
    "restart": lambda proxied: done(proxied.daemon, "restart", "m/0"),
    "stop": one_stopped,
    "roll": lambda proxied: done(proxied.daemon, "roll", "m"),
    "roll-changed": rolled,
    "apply-changed": applied,
    "reload": reloaded,
    "scale": scaled,
    "spare": moved,
    "breach": breached,
    "reexec": lambda proxied: done(proxied.daemon, "daemon", "reexec"),
    "kill": killed,
}

KEYS = {"spare": "spare = true", "breach": 'gpu-memory-utilization = 0.5\non-breach = "restart"'}
"""What the pool needs for an event."""


@needs_nginx
@pytest.mark.parametrize("event", EVENTS)
def test_no_request_is_lost(proxied: Proxied, event: str) -> None:
    proxied.start(more=KEYS.get(event, ""))

    clients = proxied.during(lambda: EVENTS[event](proxied))

    assert (clients.failed, clients.aborted) == ([], 0)
    assert proxied.daemon.all_ready()


@needs_nginx
def test_a_daemon_that_stops_takes_its_workers_out_of_the_lists_first_and_finishes_what_they_have(
    proxied: Proxied,
) -> None:
    proxied.config = proxied.config.replace('"[ !', '"sleep 0.3; [ !')  # an nginx that is slow to take the list
    proxied.start()
    ports = [worker["port"] for worker in proxied.daemon.workers().values()]
    in_flight: list[int] = []

    def stopped() -> None:
        in_flight.append(eventually(lambda: sum(map(running, ports)), within_s=5))
        assert proxied.daemon.stop() == 0

    clients = proxied.during(stopped)
    answers = proxied.answers(clients)
    refused = [answer for answer in answers if answer.refused]

    print(f"{in_flight[0]} in flight at the SIGTERM; {len(refused)} refused once nobody was listed")
    assert clients.aborted == 0
    assert {answer.status for answer in answers if not answer.refused} == {200}
    assert len(refused) == len(clients.failed) > 0
    assert min(answer.asked_s for answer in refused) >= proxied.listed_s()
    assert "server 127.0.0.1:9 down;" in proxied.upstream()


@needs_nginx
def test_a_worker_that_is_killed_is_out_of_the_list_at_once_and_only_its_own_requests_are_lost(
    proxied: Proxied,
) -> None:
    proxied.start()
    daemon = proxied.daemon
    before = daemon.worker("m/0")
    killed_at: list[float] = []

    def killed_worker() -> None:
        eventually(lambda: running(before["port"]) > 0, within_s=10)
        killed_at.append(time.time())
        os.kill(before["pid"], signal.SIGKILL)
        eventually(lambda: "m/0" not in proxied.upstream(), within_s=5, every_s=0.002)
        killed_at.append(proxied.listed_s())
        daemon.until("m/0", lambda worker: worker["run"] == 2 and worker["ready"])
        eventually(lambda: "m/0" in proxied.upstream(), within_s=5)

    clients = proxied.during(killed_worker)
    lost = [answer for answer in proxied.answers(clients) if answer.status != 200]
    struck_s, listed_s = killed_at

    print(f"out of the list after {listed_s - struck_s:.3f} s; {len(clients.failed)} of {clients.sent} requests lost")
    assert listed_s - struck_s < 1.0
    assert len(clients.failed) + clients.aborted > 0
    assert {answer.address for answer in lost} <= {f"127.0.0.1:{before['port']}"}
    assert all(answer.asked_s < listed_s + RELOADED_WITHIN_S for answer in lost)


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
    proxied.start(more='[pool.m.restart]\nmode = "never"')
    daemon = proxied.daemon

    os.kill(daemon.worker("m/0")["pid"], signal.SIGKILL)
    daemon.until("m/0", lambda worker: worker["phase"] == "stopped")
    one_left = eventually(lambda: "m/0" not in proxied.upstream() and proxied.upstream(), within_s=5)
    other = daemon.write("other.toml", '[pool.other]\nmodel = "org/m"\n')
    done(daemon, "apply", "--prune", str(other))
    nobody = eventually(lambda: "m/1" not in proxied.upstream() and proxied.upstream(), within_s=5)
    checked = subprocess.run(
        [str(NGINX), "-p", daemon.root, "-c", daemon.root / "nginx.conf", "-t"], capture_output=True, check=False
    )

    assert isinstance(one_left, str)
    assert (one_left.count("server 127"), "m/1" in one_left) == (1, True)
    assert set(daemon.workers()) == {"other/0"}
    assert isinstance(nobody, str)
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
