"""The real vLLM behind a real nginx, with an API key: requests in flight when it restarts, a frozen engine, a bad roll.

On CPU, opt-in: `make e2e-vllm`. The stories share two workers; each leaves both serving.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.e2e.real_vllm import ARGUMENTS, KV_CACHE, MARKS, READY_WITHIN_S, engine_core, family, fleet_of, write_model
from tests.e2e.stories.proxied import NGINX, Proxied, running
from tests.waiting import eventually

pytestmark = [
    *(mark for mark in MARKS if mark.name != "timeout"),
    pytest.mark.timeout(1200),  # two starts beside clients that leave a small machine no rest
    pytest.mark.skipif(NGINX is None, reason="no nginx is installed"),
]

KEY = "the-key-of-a-test"
TOKENS = 300
"""Some seconds of work for the tiny model, of 512 tokens at most."""

FROZEN_FOUND_WITHIN_S = 120.0


@pytest.fixture(scope="module")
def proxied() -> Iterator[Proxied]:
    daemon = DaemonUnderTest("2xH100-80GB")
    proxy = Proxied(daemon)
    try:
        model = write_model(daemon)
        proxy.asks = {"model": str(model), "max_tokens": TOKENS, "temperature": 0}
        proxy.key = KEY
        began = time.monotonic()
        proxy.start(the_fleet(proxy, model), ready_within_s=2 * READY_WITHIN_S)
        print(f"\ntwo workers with an API key ready after {time.monotonic() - began:.1f} s")
        yield proxy
    finally:
        proxy.close()
        daemon.close()


def the_fleet(proxied: Proxied, model: Path) -> str:
    pool: dict[str, Any] = {
        "model": str(model),
        "workers": 2,
        "port": proxied.daemon.ports + 900,
        "min-ready-s": 0.2,
        "extra-args": [*ARGUMENTS, *KV_CACHE, "--api-key", KEY],
    }
    return fleet_of(m=pool)


def test_requests_in_flight_at_a_restart_are_finished_whole(proxied: Proxied) -> None:
    daemon = proxied.daemon
    before = daemon.worker("m/0")
    in_flight: list[int] = []
    took: list[float] = []

    def restarted() -> None:
        in_flight.append(eventually(lambda: running(before["port"]), within_s=30))
        began = time.monotonic()
        assert daemon.ctl("restart", "m/0", "--no-wait").returncode == 0
        daemon.until("m/0", lambda worker: worker["phase"] not in {"ready", "draining", "stopping"}, within_s=60)
        took.append(time.monotonic() - began)
        daemon.until("m/0", lambda worker: worker["run"] == before["run"] + 1 and worker["ready"], READY_WITHIN_S)
        took.append(time.monotonic() - began)

    clients = proxied.during(restarted)
    run = daemon.call("why", {"worker": "m/0"})["runs"][0]

    print(
        f"{in_flight[0]} in flight on it; its run ended after {took[0]:.1f} s, the next was ready after {took[1]:.1f} s"
    )
    assert (clients.failed, clients.aborted) == ([], 0)
    assert (run["cause"], run["signal"]) == ("commanded", None)


def test_a_frozen_engine_behind_an_api_key_is_found_and_replaced(proxied: Proxied) -> None:
    daemon = proxied.daemon
    before = daemon.worker("m/0")

    os.kill(engine_core(family(before["pid"])).pid, signal.SIGSTOP)
    began = time.monotonic()
    daemon.until("m/0", lambda worker: worker["phase"] != "ready", within_s=FROZEN_FOUND_WITHIN_S)
    found_s = time.monotonic() - began
    after = daemon.until("m/0", lambda one: one["run"] == before["run"] + 1 and one["ready"], within_s=READY_WITHIN_S)

    print(f"frozen: found after {found_s:.1f} s, replaced after {time.monotonic() - began:.1f} s")
    assert after["last_exit"]["cause"] == "hang"


def test_a_roll_to_a_model_whose_engine_dies_at_its_first_request_stops_at_the_first_worker_and_goes_back(
    proxied: Proxied,
) -> None:
    daemon = proxied.daemon
    broken = write_model(daemon, "--broken-head-dim", name="broken")
    before = daemon.workers()
    new = daemon.write("new.toml", the_fleet(proxied, broken))

    def rolled() -> None:
        assert daemon.ctl("roll", "m", str(new), "--no-wait").returncode == 0
        eventually(lambda: "roll-back-done" in kinds(daemon), within_s=2 * READY_WITHIN_S, every_s=0.5)

    began = time.monotonic()
    clients = proxied.during(rolled)
    after = daemon.all_ready()
    tried = daemon.call("why", {"worker": "m/0"})["runs"][0]

    print(f"back at the earlier definition after {time.monotonic() - began:.1f} s: {tried['reason']}")
    assert (clients.failed, clients.aborted) == ([], 0)
    assert after["m/0"]["run"] == before["m/0"]["run"] + 2
    assert after["m/1"]["pid"] == before["m/1"]["pid"]
    assert any("head_dim=16" in line for line in tried["evidence"])


def kinds(daemon: DaemonUnderTest) -> set[str]:
    return {event["kind"] for event in daemon.call("events", {"limit": 1000})["events"]}
