"""A real daemon on a simulated host, for tests: started, asked, killed, started again, and nothing left behind."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from tests.waiting import eventually

from gpuward.control.client import Client, Unreachable

PROGRAM = Path(sys.executable).parent / "gpuward"
CTL = Path(sys.executable).parent / "gpuctl"
ANSWERS_WITHIN_S = 20.0
LIFE_S = 120
"""Every simulated process ends itself after this, so that a broken test leaves nothing for ever."""

PORTS_EACH = 1100
PORT_RANGES = range(10000, 32000, PORTS_EACH)
"""Below the ports that the kernel gives out by itself."""


def a_range_of_ports() -> tuple[int, int]:
    """Return the first port of a range that no other test's daemon has, and the lock that says so until it is closed.

    Tests of every process and checkout of the machine share the locks.
    """
    while True:
        for first in random.sample(PORT_RANGES, len(PORT_RANGES)):
            fd = os.open(f"{tempfile.gettempdir()}/gpuward-test-ports-{first}.lock", os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
            else:
                return first, fd


class DaemonUnderTest:
    """A directory of its own (short, for the socket's path), and daemons one after the other in it."""

    def __init__(self, simulate: str | None = "8xH100-80GB") -> None:
        self.root = Path(tempfile.mkdtemp(prefix="gw-"))
        self.socket = str(self.root / "c.sock")
        self.simulate = simulate
        self.process: subprocess.Popen[bytes] | None = None
        self.ports, self._ports_lock = a_range_of_ports()
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("GPUWARD", "NOTIFY"))},
            "GPUWARD_SIM_LIFE_S": str(LIFE_S),
            "GPUWARD_SIM_START_S": "0.2",
        }
        self.program: tuple[str | Path, ...] = (PROGRAM,)
        self._client: Client | None = None

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.write_text(text)
        return path

    def start(
        self,
        fleet: str | Path | None = None,
        *,
        wait: bool = True,
        config: str = "",
        under: Sequence[str] = (),
        stderr: int | None = None,
        before_exec: Callable[[], object] | None = None,
        runtime: Path | None = None,
    ) -> None:
        """Start a daemon; ``fleet`` is a file, or the text of a TOML file; ``under``: words before the program's.

        ``stderr``: where its log goes, ``daemon.log`` otherwise. ``before_exec`` is called in the child.
        ``runtime``: another runtime directory.
        """
        if isinstance(fleet, str):
            fleet = self.write("fleet.toml", fleet)
        words: list[str | Path] = [
            *under,
            *self.program,
            "run",
            "--socket",
            self.socket,
            "--state-dir",
            self.root / "st",
            "--runtime-dir",
            runtime or self.root / "rt",
        ]
        words += ["--simulate", self.simulate] if self.simulate else []
        words += ["--fleet", fleet] if fleet else []
        words += [
            "--config",
            self.write(
                "gpuward.toml",
                f"{config}\n[ports]\nfirst = {self.ports}\nlast = {self.ports + PORTS_EACH - 1}\nper-worker = 16\n",
            ),
        ]
        with (self.root / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                words,
                stdout=log,
                stderr=log if stderr is None else stderr,
                env=self.environment,
                cwd=self.root,
                preexec_fn=before_exec,  # noqa: PLW1509 - no test has threads here
            )
        if wait:
            eventually(self.answers, within_s=ANSWERS_WITHIN_S)

    def answers(self) -> bool:
        """Whether the daemon answers and has done with what it does first."""
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        try:
            return bool(self.call("ping")["open"])
        except Unreachable:
            return False

    def call(self, op: str, args: dict[str, Any] | None = None) -> Any:
        if self._client is None:
            self._client = Client(self.socket, timeout_s=10.0)
        return self._client.call(op, args)

    def workers(self) -> dict[str, dict[str, Any]]:
        return {worker["name"]: worker for worker in self.call("status")["workers"]}

    def worker(self, name: str) -> dict[str, Any]:
        return self.workers()[name]

    def until(self, name: str, condition: Callable[[dict[str, Any]], bool], within_s: float = 20.0) -> dict[str, Any]:
        """Return the worker as soon as it satisfies ``condition``."""
        last: dict[str, Any] = {}

        def satisfied() -> bool:
            nonlocal last
            last = self.workers().get(name, {})
            return bool(last) and condition(last)

        try:
            eventually(satisfied, within_s=within_s, every_s=0.05)
        except AssertionError:
            raise AssertionError(f"{name} stays {last}\n{self.log()}") from None
        return last

    def all_ready(self, within_s: float = 30.0) -> dict[str, dict[str, Any]]:
        """Return all workers as soon as there are some and every one is ready."""
        last: dict[str, dict[str, Any]] = {}

        def satisfied() -> bool:
            nonlocal last
            last = self.workers()
            return bool(last) and all(worker["ready"] for worker in last.values())

        try:
            eventually(satisfied, within_s=within_s, every_s=0.1)
        except AssertionError:
            raise AssertionError(f"not all ready: {last}\n{self.log()}") from None
        return last

    def ctl(self, *words: str, **known: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [CTL, "--socket", self.socket, *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=self.root,
            env=self.environment,
            **known,
        )

    def kill(self) -> None:
        """SIGKILL to the daemon."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._hang_up()

    def stop(self, within_s: float = 40.0) -> int:
        """SIGTERM to the daemon; return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self._hang_up()
        return self.process.wait(within_s)

    def log(self) -> str:
        return (self.root / "daemon.log").read_text(errors="replace")[-8000:]

    def left(self) -> tuple[int, ...]:
        """Processes that carry a marker of this daemon's runs."""
        instance = (
            (self.root / "st" / "instance").read_text().strip() if (self.root / "st" / "instance").exists() else ""
        )
        return tuple(pid for pid in psutil.pids() if instance and _carries(pid, f"GPUWARD_RUN={instance}:".encode()))

    def close(self) -> None:
        """End everything; AssertionError where an orderly stop leaves a process."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        self._hang_up()
        left = self.left()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)
        os.close(self._ports_lock)
        assert left == (), f"left behind: {left}"

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def _carries(pid: int, marker: bytes) -> bool:
    try:
        return marker in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
