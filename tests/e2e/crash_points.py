"""Kills the daemon at one boundary between two effects of a scripted life, and holds the next one to DESIGN.

The successor may be killed at a boundary too, while it takes over; then it is its own successor that is held to it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

from gpuward.control.client import Refused, Unreachable

WITNESS = Path(__file__).with_name("witness.py")
CONFIG = "[inventory]\nsample-interval-s = 0.2\n"
POOL = """
[pool.{name}]
engine = "command"
command = ["{python}", "-I", "-S", "{witness}", "{directory}"]
gpus-per-worker = {gpus}
workers = {workers}
ready-after-s = 0.05
stop-timeout-s = 5
min-ready-s = 0.05
env = {{ DEFINITION = "{definition}" }}
{keys}
[pool.{name}.restart]
delay-first-s = 0.05
delay-max-s = 0.05
"""
Workers = dict[str, dict[str, Any]]


class Died(Exception):
    """The daemon is gone: the boundary was reached."""


@dataclass(slots=True)
class Story:
    """How far the script came: what was answered, and what was asked without an answer."""

    answered: list[str] = field(default_factory=list)
    asked: str = ""
    seen: Workers = field(default_factory=dict)
    """The workers as they were told last."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The boundaries that the first daemon passed, by name, and those that daemons were killed at, in order."""

    passed: tuple[str, ...]
    killed_at: tuple[str, ...]


class CrashPoint:
    """A daemon killed at boundary number ``at``, and its successor killed at number ``again`` (0: neither is)."""

    def __init__(self, at: int, again: int = 0) -> None:
        self.at = at
        self.again = again
        self.daemon = DaemonUnderTest()
        self.story = Story()
        self.directory = self.daemon.root / "witness"
        self.directory.mkdir()

    def run(self) -> Outcome:
        """Live through the script, crash, recover, check; AssertionError names the boundaries."""
        self._die_at(self.at)
        self._live()
        passed, killed_at = self._end(within_s=40)
        try:
            if killed_at and self.again:
                killed_at += self._die_again()
            if killed_at:
                self._recover()
            assert self._keepers() == {}
        except AssertionError as error:
            where = f"killed at {self.at} {killed_at} of {self.story.answered} + {self.story.asked!r}"
            raise AssertionError(f"{where}: {error}\n{self.daemon.log()}") from None
        finally:
            self.daemon.close()
        return Outcome(passed, killed_at)

    def _die_at(self, number: int) -> None:
        """What the next daemon is told; 0 is nothing at all."""
        path = self.daemon.root / "boundaries"
        path.unlink(missing_ok=True)
        self.daemon.environment.update(GPUWARD_BOUNDARIES=str(path), GPUWARD_CRASH_AT=str(number))

    def _end(self, within_s: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Wait for the daemon's end; what it passed, and where it was killed, if it was."""
        assert self.daemon.process is not None
        code = self.daemon.process.wait(within_s)
        assert code in {0, -signal.SIGKILL}, self.daemon.log()
        passed = tuple((self.daemon.root / "boundaries").read_text().splitlines())
        return passed, passed[-1:] if code else ()

    def _die_again(self) -> tuple[str, ...]:
        """Let the successor be killed while it takes over; one that has nothing left to do then, is killed idle."""
        self._die_at(self.again)
        self.daemon.start(self.daemon.root / "fleet.toml", config=CONFIG, wait=False)
        with suppress(Died):
            self._until(lambda: self._open() and self._settled(self.daemon.workers()))
            self.daemon.kill()
            return ("idle",)
        return self._end(within_s=5)[1]

    def _fleet(self, workers: int, definition: str) -> str:
        common = {"python": sys.executable, "witness": WITNESS, "directory": self.directory, "gpus": 1}
        pools = (
            {"name": "bystander", "workers": 1, "definition": "old", "keys": ""},
            {"name": "w", "workers": workers, "definition": definition, "keys": ""},
            {"name": "p", "workers": 1, "definition": "old", "keys": ""},
            {"name": "q", "workers": 1, "definition": "old", "keys": 'depends-on = ["p"]'},
        )
        return "".join(POOL.format(**common, **pool) for pool in pools)

    def _live(self) -> None:
        self.daemon.start(self._fleet(3, "old"), wait=False, config=CONFIG)
        with suppress(Died):
            for asked, ask, reached in self._script():
                self.story.asked = asked
                self._until(ask)
                self.story.answered.append(asked)
                self.story.asked = ""
                self._until(lambda reached=reached: reached(self._look()))
            self.story.asked = "end"
            assert self.daemon.process is not None
            self.daemon.process.send_signal(signal.SIGTERM)

    def _script(self) -> Iterator[tuple[str, Callable[[], object], Callable[[Workers], bool]]]:
        """Each step: its name, the command, and what it leads to."""
        call = self.daemon.call
        changed = {"text": self._fleet(4, "new"), "name": "new.toml", "directory": "/"}
        yield "start", self._open, lambda now: bool(now) and all(one["ready"] for one in now.values())
        yield "restart", lambda: call("restart", {"targets": ["w/0"]}), lambda now: ready(now, "w/0", 2)
        yield "kill", self._kill_worker, lambda now: ready(now, "w/1", 2)
        yield "stop", lambda: call("stop", {"targets": ["w/2"]}), lambda now: now["w/2"]["phase"] == "stopped"
        yield "scale", lambda: call("scale", {"pool": "w", "workers": 4}), lambda now: ready(now, "w/3", 1)
        yield "apply", lambda: call("apply", changed), lambda now: ready(now, "w/0", 3) and ready(now, "w/3", 2)
        yield "pair", lambda: call("stop", {"targets": ["p", "q"]}), lambda now: now["p/0"]["phase"] == "stopped"

    def _open(self) -> bool:
        return bool(self.daemon.call("ping")["open"])

    def _kill_worker(self) -> bool:
        os.kill(self._look()["w/1"]["pid"], signal.SIGKILL)
        return True

    def _look(self) -> Workers:
        self.story.seen = self.daemon.workers()
        return self.story.seen

    def _until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition of the first daemon; Died as soon as that is dead."""
        process = self.daemon.process
        assert process is not None

        def holds() -> bool:
            try:
                return bool(condition())
            except (Unreachable, Refused) as error:
                if process.poll() is not None:
                    raise Died from None
                if isinstance(error, Refused):
                    raise
                return False

        eventually(holds, within_s=20, every_s=0.03)

    def _recover(self) -> None:
        """Start the next daemon and hold it to every invariant."""
        before = self.story.seen
        self._die_at(0)
        self.daemon.start(self.daemon.root / "fleet.toml", config=CONFIG)
        eventually(lambda: self._settled(self.daemon.workers()) and self._is_rolled(), within_s=30)
        status = self.daemon.call("status")
        after = {worker["name"]: worker for worker in status["workers"]}
        self._check_workers(before, after)
        self._check_fleet(status["fleet"]["revision"], after)
        self._check_processes(after)
        assert self.daemon.stop() == 0
        assert self.daemon.left() == ()

    def _settled(self, now: Workers) -> bool:
        """Whether everything wanted up is ready and everything else has stopped; nothing of this has failed."""
        if not all(one["ready"] if one["goal"] == "up" else one["phase"] == "stopped" for one in now.values()):
            assert not [one for one in now.values() if one["phase"] == "failed"], now
            return False
        return bool(now)

    def _check_workers(self, before: Workers, after: Workers) -> None:
        done, asked = self.story.answered, self.story.asked
        for name, goal_down_by in (("w/2", "stop"), ("p/0", "pair"), ("q/0", "pair")):
            if goal_down_by in done:
                assert after[name]["goal"] == "down", f"{name} was stopped and is {after[name]}"
            elif goal_down_by != asked:
                assert after[name]["goal"] == "up", f"nobody stopped {name} and it is {after[name]}"
        assert after["bystander/0"]["goal"] == "up"
        assert "scale" not in done or "w/3" in after, "the answered scaling is lost"
        for name, worker in before.items():
            assert after[name]["run"] >= worker["run"], f"{name} goes back from {worker} to {after[name]}"
        known = before.get("bystander/0", {}).get("pid")
        if known is not None and asked != "end":
            assert after["bystander/0"]["pid"] == known, "a worker that nobody touched was restarted"

    def _check_fleet(self, revision: int, after: Workers) -> None:
        done = self.story.answered
        assert revision >= 1 + ("scale" in done) + ("apply" in done), f"revision {revision} after {done}"
        for name, worker in after.items():
            assert self._runs(worker, revision), f"{name} does not run what revision {revision} says"

    def _is_rolled(self) -> bool:
        """Whether a changed fleet has reached all; the next daemon goes on with a roll."""
        status = self.daemon.call("status")
        return all(self._runs(worker, status["fleet"]["revision"]) for worker in status["workers"])

    def _runs(self, worker: dict[str, Any], revision: int) -> bool:
        if worker["pool"] != "w" or not worker["ready"]:
            return True
        definition = b"DEFINITION=new" if revision == 3 else b"DEFINITION=old"
        return definition in Path(f"/proc/{worker['pid']}/environ").read_bytes().split(b"\0")

    def _check_processes(self, after: Workers) -> None:
        violations = self.directory / "violations"
        assert not violations.exists(), violations.read_text()
        starts = (self.directory / "starts").read_text().split()
        assert len(starts) == len(set(starts)), f"a run was started twice: {starts}"
        ready_ones = sorted(name for name, worker in after.items() if worker["ready"])
        assert sorted(self._keepers()) == ready_ones
        eventually(lambda: len(self.daemon.left()) == 2 * len(ready_ones), within_s=5)

    def _keepers(self) -> dict[str, int]:
        """Living keepers below this daemon's runtime directory, by worker."""
        found: dict[str, int] = {}
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if words and words[-1].startswith(f"{self.daemon.root}/rt/runs/"):
                pool, index, _ = words[-1].split("/")[-3:]
                assert f"{pool}/{index}" not in found, f"two keepers of {pool}/{index}"
                found[f"{pool}/{index}"] = process.pid
        return found


def ready(now: Workers, name: str, run: int) -> bool:
    """Whether a worker is ready in this run."""
    return name in now and bool(now[name]["ready"]) and now[name]["run"] == run
