"""The real vLLM in end-to-end tests: its model, its pools, questions to it, when its processes started and ended."""

from __future__ import annotations

import json
import os
import select
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w
from tests.e2e.daemon import DaemonUnderTest

from gpuward.host.keeper import oom_kills

PYTHON = os.environ.get("GPUWARD_VLLM", "")
READY_WITHIN_S = 300.0

MARKS = [
    pytest.mark.e2e,
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PYTHON, reason="GPUWARD_VLLM names no Python that has vLLM (make e2e-vllm)"),
]

ARGUMENTS = ("--max-num-seqs", "4", "--enforce-eager", "--dtype", "bfloat16")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""Unbound: left out, every vLLM of a host binds its worker to core 0, and a restart beside another takes minutes (0.32;
0.20.2 dies of "nobind")."""

KV_CACHE = ("--kv-cache-memory-bytes", str(64 * 2**20))
"""Without a size of its own the cache takes what gpu-memory-utilization leaves: of host memory, on a CPU."""

KERNEL_KILLS_BEFORE = oom_kills()


def write_model(daemon: DaemonUnderTest, *options: str, name: str = "tiny") -> Path:
    directory = daemon.root / name
    script = Path(__file__).with_name("tiny_model.py")
    subprocess.run([PYTHON, script, directory, *options], timeout=120, check=True)
    return directory


def fleet_of(**pools: dict[str, Any]) -> str:
    """Return a fleet of pools whose workers get one GPU each; a pool's own keys win."""
    defaults = {
        "executable": PYTHON,
        "gpus-per-worker": 1,
        "max-model-len": 512,
        "extra-args": [*ARGUMENTS, *KV_CACHE],
        "env": ENVIRONMENT,
    }
    return tomli_w.dumps({"defaults": defaults, "pool": pools})


def complete(port: int, model: Path) -> str:
    """Ask a worker for eight tokens; return its text."""
    body = {"model": str(model), "prompt": "the worker", "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        document: dict[str, Any] = json.load(answer)
    text: str = document["choices"][0]["text"]
    return text


def until_answered(daemon: DaemonUnderTest, name: str, model: Path, run: int) -> dict[str, Any]:
    worker = daemon.until(name, lambda worker: worker["run"] == run and worker["ready"], within_s=READY_WITHIN_S)
    assert complete(worker["port"], model).strip()
    return worker


def last_run(daemon: DaemonUnderTest, name: str) -> dict[str, Any]:
    run: dict[str, Any] = daemon.call("why", {"worker": name})["runs"][0]
    return run


def health(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
        status: int = answer.status
    return status


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def memory_mib(processes: list[psutil.Process]) -> int:
    return int(sum(process.memory_info().rss for process in processes) / 2**20)


def engine_core(tree: Iterable[psutil.Process]) -> psutil.Process:
    """The engine's own process; the kernel keeps 15 characters of its title."""
    (engine,) = [process for process in tree if process.name().startswith("VLLM::EngineCor")]
    return engine


def started_s(pid: int) -> float:
    """When a process started, in seconds since boot."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return int(ticks) / os.sysconf("SC_CLK_TCK")


def causes_of_a_silent_death() -> set[str]:
    """It is a crash; where the kernel has killed meanwhile for want of memory, perhaps elsewhere, that is suspected."""
    return {"crash", "host-oom"} if oom_kills() > KERNEL_KILLS_BEFORE else {"crash"}


class Deaths:
    """Sees from outside when each of some processes ends, in seconds since boot; a zombie has ended."""

    def __init__(self, processes: Iterable[psutil.Process]) -> None:
        self._living = [os.pidfd_open(process.pid) for process in processes]
        self._at_s: list[float] = []
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def last_s(self) -> float:
        """When the last one ended; AssertionError where one lives."""
        self._watching.join(timeout=1.0)
        assert not self._watching.is_alive(), f"{len(self._living)} processes of the old run are alive"
        return max(self._at_s)

    def _watch(self) -> None:
        poller = select.poll()
        for fd in self._living:
            poller.register(fd, select.POLLIN)
        while self._living:
            for fd, _ in poller.poll():
                self._at_s.append(time.clock_gettime(time.CLOCK_BOOTTIME))
                poller.unregister(fd)
                self._living.remove(fd)
                os.close(fd)
