"""Things die and are commanded in an order that nobody planned; whatever it was, the invariants of DESIGN hold.

GPUWARD_CHAOS_S is how long it goes on (default 6 s), GPUWARD_CHAOS_SEED which order (default: another one each time).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
import pytest
from tests.e2e.crash_points import CONFIG, POOL, WITNESS
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

from gpuward.control.client import Refused, Unreachable

CHAOS_S = float(os.environ.get("GPUWARD_CHAOS_S", "6"))
SEED = int(os.environ.get("GPUWARD_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
BUDGET = "max-failures = 1000\n"
"""Stands last in a pool's restart policy: nothing here is to end as failed."""

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(CHAOS_S + 120)]


class Chaos:
    """One daemon after the other over the same workers, and what may happen to them."""

    def __init__(self, daemon: DaemonUnderTest) -> None:
        self.daemon = daemon
        self.random = random.Random(SEED)
        self.directory = daemon.root / "witness"
        self.directory.mkdir()
        self.happened: list[str] = []
        self.definitions = 0
        self.events: dict[Callable[[], None], int] = {
            self.worker_dies: 6,
            self.descendant_dies: 2,
            self.keeper_dies: 3,
            self.daemon_dies: 3,
            self.daemon_and_keeper_die: 1,
            self.worker_freezes: 1,
            self.command: 8,
            self.scale: 2,
            self.apply: 2,
            self.roll: 1,
            self.reexec: 1,
            self.run_directory_goes: 1,
        }

    def begin(self) -> None:
        self.daemon.start(self.fleet(), config=CONFIG)
        self.daemon.all_ready()
        assert self.daemon.ctl("stop", "quiet").returncode == 0

    def step(self) -> None:
        event = self.random.choices(list(self.events), list(self.events.values()))[0]
        self.happened.append(event.__name__)
        event()
        time.sleep(self.random.choice((0.0, 0.01, 0.05, 0.2, 0.5)))
        assert self.told("violations") == [], self
        assert self.told("starts").count("quiet") == 1, f"a worker that was stopped has started: {self}"

    def told(self, name: str) -> list[str]:
        """Return what the witnesses say; of each start the pool."""
        with suppress(FileNotFoundError):
            lines = (self.directory / name).read_text().splitlines()
            return [line.split(":")[1].split("/")[0] for line in lines] if name == "starts" else lines
        return []

    def fleet(self, workers: int = 3) -> str:
        common = {"python": sys.executable, "witness": WITNESS, "directory": self.directory}
        pools = (
            {"name": "w", "gpus": 1, "workers": workers, "definition": self.definitions, "keys": ""},
            {"name": "front", "gpus": 2, "workers": 1, "definition": 0, "keys": 'depends-on = ["w"]'},
            {"name": "quiet", "gpus": 1, "workers": 1, "definition": 0, "keys": ""},
        )
        return "".join(POOL.format(**common, **pool) + BUDGET for pool in pools)

    # What happens

    def worker_dies(self) -> None:
        self._kill("pid", signal.SIGKILL)

    def descendant_dies(self) -> None:
        pid = self._pid("pid")
        with suppress(psutil.Error):
            for child in psutil.Process(pid).children() if pid else ():
                child.kill()

    def keeper_dies(self) -> None:
        self._kill("keeper_pid", signal.SIGKILL)

    def worker_freezes(self) -> None:
        self._kill("pid", signal.SIGSTOP)

    def daemon_dies(self) -> None:
        self.daemon.kill()
        time.sleep(self.random.choice((0.0, 0.0, 0.1, 0.3)))
        self.daemon.start(self.daemon.root / "fleet.toml", config=CONFIG, wait=self.random.random() < 0.5)

    def daemon_and_keeper_die(self) -> None:
        pid = self._pid("keeper_pid")
        self.daemon.kill()
        _signal(pid, signal.SIGKILL)
        self.daemon.start(self.daemon.root / "fleet.toml", config=CONFIG)

    def command(self) -> None:
        verb = self.random.choice(("start", "restart", "restart", "stop"))
        self._ask(verb, {"targets": [self.random.choice(("w", "w/0", "w/1", "w/2", "front"))]})

    def scale(self) -> None:
        self._ask("scale", {"pool": "w", "workers": self.random.choice((1, 2, 3))})

    def apply(self) -> None:
        self.definitions += 1
        file = self.daemon.write("other.toml", self.fleet(self.random.choice((2, 3))))
        self.daemon.ctl("apply", str(file), "--no-wait")

    def roll(self) -> None:
        self.daemon.ctl("roll", "w", "--no-wait")

    def reexec(self) -> None:
        self.daemon.ctl("daemon", "reexec")

    def run_directory_goes(self) -> None:
        directories = [path for path in (self.daemon.root / "rt" / "runs").glob("*") if path.is_dir()]
        if directories:
            shutil.rmtree(self.random.choice(directories), ignore_errors=True)

    def _ask(self, op: str, args: dict[str, object]) -> None:
        with suppress(Refused, Unreachable):
            self.daemon.call(op, args)

    def _pid(self, key: str) -> int | None:
        with suppress(Unreachable):
            workers = self.daemon.workers()
            return self.random.choice(list(workers.values()))[key] if workers else None
        return None

    def _kill(self, key: str, number: signal.Signals) -> None:
        _signal(self._pid(key), number)

    def __str__(self) -> str:
        return f"seed {SEED}: {self.told('violations')} after {self.happened[-12:]}\n{self.daemon.log()}"


def _signal(pid: int | None, number: signal.Signals) -> None:
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def test_the_invariants_hold_whatever_happens(daemon: DaemonUnderTest) -> None:
    chaos = Chaos(daemon)
    chaos.begin()
    until_s = time.monotonic() + CHAOS_S
    while time.monotonic() < until_s:
        chaos.step()

    eventually(daemon.answers, within_s=20)
    for worker in daemon.workers().values():
        _signal(worker["pid"], signal.SIGCONT)
    daemon.ctl("start", "w", "front", "--no-wait")
    wanted = daemon.until("front/0", lambda worker: worker["ready"], within_s=30)
    eventually(lambda: all(w["ready"] == (w["goal"] == "up") for w in daemon.workers().values()), within_s=20)
    starts = len(chaos.told("starts"))
    print(f"seed {SEED}: {len(chaos.happened)} events, {starts} starts, front/0 at run {wanted['run']}")
    assert chaos.told("violations") == [], chaos
    assert daemon.worker("quiet/0")["goal"] == "down"
