"""A worker that prints more than 100 MB a minute: its cause is found, and the daemon neither grows nor slows down."""

from __future__ import annotations

import statistics
import sys
import time

import psutil
import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

pytestmark = pytest.mark.e2e

MIB = 1024**2
CAUSE = "RuntimeError: CUDA error: an illegal memory access was encountered"
FLOODS = f"""
import os, time
print("{CAUSE}", flush=True)
burst = b"INFO 11-24 01:00:00 [loggers.py:1] Avg prompt throughput: 123.4 tokens/s, Running: 12 reqs\\\\n" * 10_000
os.write(1, burst + burst)
while not os.path.exists("seen"):
    time.sleep(0.02)
began = time.monotonic()
for number in range(1, 17):
    rest = memoryview(burst)
    while rest:
        rest = rest[os.write(1, rest):]
    time.sleep(max(0.0, began + 0.25 * number - time.monotonic()))
os._exit(1)
"""
FLEET = """
[pool.m]
engine = "command"
command = ["{python}", "-I", "-S", "flood.py"]
working-directory = "{root}"
gpus-per-worker = 1
gpu-memory-utilization = 0.5
ready-after-s = 0.05
restart.mode = "never"
"""


def reads_the_log(daemon: DaemonUnderTest) -> bool:
    """Whether the daemon has the output of the run open: it has begun to read it."""
    assert daemon.process is not None
    opened = psutil.Process(daemon.process.pid).open_files()
    return any("/logs/m/0/1.log" in file.path for file in opened)


def answer_s(daemon: DaemonUnderTest, count: int) -> float:
    """The median time of an answer, asked for over a while."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        daemon.call("status")
        took.append(time.perf_counter() - began)
        time.sleep(0.05)
    return statistics.median(took)


def test_the_first_line_of_a_flood_is_the_cause_after_it_was_overwritten(daemon: DaemonUnderTest) -> None:
    daemon.write("flood.py", FLOODS)
    fleet = FLEET.format(python=sys.executable, root=daemon.root)
    daemon.start(fleet, config=f"[limits]\nlog-max-bytes = {4 * MIB}\n")
    assert daemon.process is not None
    memory = psutil.Process(daemon.process.pid).memory_info
    eventually(lambda: reads_the_log(daemon), within_s=20)
    idle_s, before_bytes = answer_s(daemon, 20), memory().rss

    daemon.write("seen", "")
    flooded_s, grown_bytes = answer_s(daemon, 40), memory().rss - before_bytes
    ended = daemon.until("m/0", lambda worker: worker["last_exit"] is not None, within_s=30)

    kept = [path for path in (daemon.root / "st" / "logs" / "m" / "0").iterdir() if path.name.startswith("1.log")]
    assert sum(path.stat().st_size for path in kept) <= 8 * MIB
    assert not any(CAUSE.encode() in path.read_bytes() for path in kept)
    assert ended["last_exit"]["cause"] == "cuda-fault"
    assert ended["last_exit"]["evidence"] == [CAUSE]
    assert grown_bytes < 32 * MIB
    assert flooded_s < 10 * idle_s + 0.05
