"""The measurements. Each returns plain numbers and leaves what it measured as it was."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

import outside
import zmq
from supervisors import Supervisor

from gpuward.config.fleet import Pool
from gpuward.control import protocol
from gpuward.policy.gpus.inventory import Gpu, Snapshot
from gpuward.policy.placement.place import place

RECOVERY_WITHIN_S = 30.0
PAUSE_S = 0.3
"""Least time between two kills."""

GIB = 1024**3


@dataclass(frozen=True)
class Footprint:
    """Memory in bytes, the keepers' as medians; CPU time in seconds per minute of doing nothing, keepers included."""

    daemon_rss_bytes: int
    keeper_rss_bytes: int
    keeper_pss_bytes: int
    cpu_s_per_minute: float


def recoveries_ms(supervisor: Supervisor, kills: int) -> list[float]:
    """From SIGKILL of the worker that has lived longest to the exec of its replacement, in milliseconds.

    The pauses spread the kills evenly over the period of a supervisor that polls: it is met at every point of it.
    """
    spread = random.Random(kills)
    times = []
    for _ in range(kills):
        time.sleep(PAUSE_S + spread.uniform(0, supervisor.period_s))
        victim = outside.running(supervisor.worker_command)[0]
        known = outside.pids()
        killed = time.perf_counter()
        os.kill(victim, signal.SIGKILL)
        outside.wait_for_new(supervisor.worker_command, known, RECOVERY_WITHIN_S)
        times.append((time.perf_counter() - killed) * 1000)
    return times


class Client:
    """A kept-open client: one DEALER, one request at a time."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.dealer.setsockopt(zmq.RCVTIMEO, 5000)
        self.dealer.setsockopt(zmq.LINGER, 0)
        self.dealer.connect(f"ipc://{supervisor.socket}")

    def status(self) -> bytes:
        """One full status as it came."""
        self.dealer.send(protocol.request("status", {}, "bench"))
        answer: bytes = self.dealer.recv_multipart()[-1]
        return answer

    def close(self) -> None:
        self.dealer.close()


def round_trips_ms(supervisor: Supervisor, count: int) -> tuple[list[float], int]:
    """Full status asked ``count`` times on one connection: milliseconds each, and the bytes of one answer."""
    client = Client(supervisor)
    size = len(client.status())
    times = []
    for _ in range(count):
        asked = time.perf_counter()
        client.status()
        times.append((time.perf_counter() - asked) * 1000)
    client.close()
    return times, size


def whole_process_ms(supervisors: Sequence[Supervisor], rounds: int) -> dict[str, list[float]]:
    """The status command of each as a process, output not a terminal, in turns: milliseconds each."""
    times: dict[str, list[float]] = {each.name: [] for each in supervisors}
    for _ in range(rounds):
        for each in supervisors:
            started = time.perf_counter()
            subprocess.run(
                each.status_command, env={**os.environ, **each.environment}, capture_output=True, timeout=30, check=True
            )
            times[each.name].append((time.perf_counter() - started) * 1000)
    return times


def footprint(supervisor: Supervisor, keepers: Sequence[int], idle_s: float) -> Footprint:
    """Memory now, and CPU time over ``idle_s`` in which nobody asks anything."""
    watched = (supervisor.pid, *keepers)
    before = sum(outside.cpu_s(pid) for pid in watched)
    time.sleep(idle_s)
    used = sum(outside.cpu_s(pid) for pid in watched) - before
    return Footprint(
        daemon_rss_bytes=outside.rss_bytes(supervisor.pid),
        keeper_rss_bytes=int(statistics.median(outside.rss_bytes(pid) for pid in keepers)),
        keeper_pss_bytes=int(statistics.median(outside.pss_bytes(pid) for pid in keepers)),
        cpu_s_per_minute=used * 60 / idle_s,
    )


def placements_ms(workers: int, gpus: int, rounds: int) -> list[float]:
    """Place ``workers`` workers on ``gpus`` GPUs, all of them, in memory: milliseconds each time."""
    snapshot = Snapshot(
        provider="simulated",
        state="ok",
        taken_at_s=0.0,
        gpus=tuple(
            Gpu(index=i, uuid=f"GPU-{i:08x}", name="H100", pci_bus_id=f"{i:08x}:00.0", total_bytes=80 * GIB)
            for i in range(gpus)
        ),
    )
    pools = [Pool(name=f"pool{i}", model="m", workers=workers // 4, gpus_per_worker=gpus // workers) for i in range(4)]
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        plan = place(pools, snapshot)
        times.append((time.perf_counter() - started) * 1000)
        assert plan.ok, plan.problems
        assert len({uuid for worker in plan.workers for uuid in worker.gpu_uuids}) == gpus
    return times
