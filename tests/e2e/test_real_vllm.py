"""The real vLLM on CPU under a daemon whose GPUs are simulated. Opt-in: `make e2e-vllm` sets GPUWARD_VLLM.

It prints the figures that it meets on the way; a start takes about a minute on two cores.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.e2e.real_vllm import (
    MARKS,
    READY_WITHIN_S,
    causes_of_a_silent_death,
    complete,
    family,
    fleet_of,
    memory_mib,
    write_model,
)

pytestmark = MARKS


@pytest.fixture
def daemon() -> Iterator[DaemonUnderTest]:
    """A daemon on a simulated host with 2 GPUs; not started yet."""
    under_test = DaemonUnderTest("2xH100-80GB")
    yield under_test
    under_test.close()


def workers_of(model: Path, workers: int) -> str:
    return fleet_of(tiny={"model": str(model), "workers": workers, "restart": {"delay-first-s": 0.05}})


def test_two_real_workers_serve_one_is_killed_and_comes_back_and_all_stop(daemon: DaemonUnderTest) -> None:
    model = write_model(daemon)
    began = time.monotonic()

    daemon.start(workers_of(model, workers=2))
    workers = daemon.all_ready(READY_WITHIN_S)
    ready_s = time.monotonic() - began
    texts = {complete(worker["port"], model) for worker in workers.values()}

    victim, bystander = workers["tiny/0"], workers["tiny/1"]
    tree = family(victim["pid"])
    print(f"\nready after {ready_s:.1f} s; a tree of {len(tree)} processes, {memory_mib(tree)} MiB")
    assert [worker["gpus"] for worker in workers.values()] == [[0], [1]]
    assert len(texts) == 1
    assert texts.pop().strip()
    assert len(tree) >= 3

    killed = time.monotonic()
    os.kill(victim["pid"], signal.SIGKILL)
    second = daemon.until("tiny/0", lambda worker: worker["run"] == 2 and worker["pid"] is not None)
    started_s = time.monotonic() - killed
    survivors = [process for process in tree if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    answered_meanwhile = complete(bystander["port"], model)
    back = daemon.until("tiny/0", lambda worker: worker["ready"], within_s=READY_WITHIN_S)
    back_s = time.monotonic() - killed

    print(f"killed; replacement started after {started_s * 1000:.0f} ms, ready after {back_s:.1f} s")
    assert survivors == []
    assert answered_meanwhile.strip()
    assert second["last_exit"]["cause"] in causes_of_a_silent_death()
    assert second["last_exit"]["signal"] == 9
    assert complete(back["port"], model).strip()
    assert daemon.worker("tiny/1")["pid"] == bystander["pid"]

    everything = [process for worker in daemon.workers().values() for process in family(worker["keeper_pid"])]
    asked = time.monotonic()
    code = daemon.stop(within_s=60)

    print(f"stopped after {time.monotonic() - asked:.1f} s")
    assert code == 0
    assert [process for process in everything if process.is_running()] == []
    assert daemon.left() == ()


def test_a_real_engine_that_dies_at_its_first_request_is_never_ready_and_a_failure_although_vllm_exits_0(
    daemon: DaemonUnderTest,
) -> None:
    model = write_model(daemon, "--broken-head-dim")
    daemon.start(workers_of(model, workers=1))

    ended = daemon.until("tiny/0", lambda worker: worker["last_exit"] is not None, within_s=READY_WITHIN_S)
    daemon.ctl("stop", "tiny/0")
    phases = {event["kind"] for event in daemon.call("events", {"limit": 1000})["events"]}

    print(f"\n{ended['last_exit']}")
    assert ended["last_exit"]["code"] == 0
    assert ended["last_exit"]["cause"] == "crash"
    assert any("head_dim=16" in line for line in ended["last_exit"]["evidence"])
    assert ended["restarts"] == 1
    assert "worker-starting" in phases
    assert "worker-ready" not in phases
