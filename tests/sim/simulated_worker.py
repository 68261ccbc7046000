"""One simulated worker as a test starts it, outside any daemon."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

import pytest

from gpuward.sim.gpus import SimulatedGpus

GIB = 1024**3
READY = "Application startup complete."
A_COMPLETION = b'POST /v1/completions HTTP/1.1\r\nContent-Length: 14\r\n\r\n{"prompt":"x"}'


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_gone(pid: int, within_s: float = 10.0) -> bool:
    """Whether the process ends in time; a pidfd becomes readable then."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], within_s)[0])
    finally:
        os.close(descriptor)


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()


def one_that_ends(workers: list[Worker]) -> Worker:
    """Wait for the first end among them."""
    pidfds = {os.pidfd_open(worker.process.pid): worker for worker in workers}
    ended = select.select(list(pidfds), [], [], 15)[0]
    for pidfd in pidfds:
        os.close(pidfd)
    return pidfds[ended[0]]


class Worker:
    """One `serve` with its log; `Popen.pid` is the API server, leader of the session that all its children stay in."""

    def __init__(self, gpus: SimulatedGpus, words: list[str], environment: dict[str, str]) -> None:
        self.port = free_port()
        self.log: list[str] = []
        quick = {"GPUWARD_SIM_START_S": "0.05", "GPUWARD_SIM_TOKEN_S": "0.001", "GPUWARD_SIM_WATCHDOG_S": "0.2"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpuward.sim.vllm.worker", "serve", "org/model"]  # noqa: RUF005  three lines, three thoughts
            + ["--host", "127.0.0.1", "--port", str(self.port)]
            + words,
            env=os.environ | gpus.environment() | quick | {"GPUWARD_SIM_LIFE_S": "50"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )

    @property
    def output(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def until(self, text: str) -> Self:
        """Read the log to the line that contains this."""
        for line in self.output:
            self.log.append(line.rstrip())
            if text in line:
                return self
        pytest.fail(f"the log ended without {text!r}:\n" + "\n".join(self.log))

    def ready(self) -> Self:
        return self.until(READY)

    def ended(self) -> int:
        """Wait for the API server's end, then read what is left of the log (descendants may hold it open)."""
        code = self.process.wait(15)
        os.set_blocking(self.output.fileno(), False)
        self.log += (os.read(self.output.fileno(), 1 << 20) or b"").decode().splitlines() if self._readable() else []
        return code

    def _readable(self) -> bool:
        return bool(select.select([self.output], [], [], 0)[0])

    def ask(self, method: str, path: str, document: object = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, None if document is None else json.dumps(document))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        return json.loads(self.ask("GET", path)[1])

    def children(self) -> dict[str, int]:
        """Pids by title of everything in the session but the API server."""
        found: dict[str, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.process.pid:
                try:
                    if os.getsid(int(entry.name)) == self.process.pid:
                        found[command_of(int(entry.name))] = int(entry.name)
                except (ProcessLookupError, FileNotFoundError):
                    continue
        return found

    def destroy(self) -> None:
        """Nothing stays: the group outlives its leader."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self.output.close()


Start = Callable[..., Worker]
