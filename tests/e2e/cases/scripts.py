"""Small programs for workers, the fleets that run them, and waiting for what a command led to."""

from __future__ import annotations

import sys
from typing import Any

import tomli_w
from tests.e2e.daemon import DaemonUnderTest

SLEEPS = "print('up', flush=True); time.sleep(100)"
IGNORES_SIGTERM = f"signal.signal(15, signal.SIG_IGN); {SLEEPS}"
CRASHES = "sys.stderr.write('Traceback (most recent call last):\\nKeyError: no such layer\\n'); sys.exit(3)"
FAST_RESTART = {"delay-first-s": 0.05, "delay-max-s": 0.05}
FAILS_AT_ONCE = {"max-failures": 1, "delay-first-s": 0.01}


def python(code: str) -> list[str]:
    """A command that runs ``code``."""
    return [sys.executable, "-I", "-S", "-c", f"import os, signal, sys, time\n{code}"]


def pools(**by_name: dict[str, Any]) -> str:
    """Return a fleet of pools of engine ``command`` that are ready when they print ``up``."""
    defaults = {"engine": "command", "gpus-per-worker": 0, "restart": FAST_RESTART}
    shown = {name: {**defaults, **keys} for name, keys in by_name.items()}
    for pool in shown.values():
        if "ready-after-s" not in pool:
            pool.setdefault("ready-log", "up")
    return tomli_w.dumps({"pool": shown})


def command(daemon: DaemonUnderTest, verb: str, *targets: str) -> str:
    """Give a command and return its operation."""
    operation: str = daemon.call(verb, {"targets": list(targets)})["operation"]
    return operation


def outcome(daemon: DaemonUnderTest, operation: str) -> dict[str, Any]:
    """Return an operation once it is over."""
    found: dict[str, Any] = {"state": "running", "version": 0}
    for _ in range(50):
        if found["state"] != "running":
            return found
        found = daemon.call("operation", {"id": operation, "seen": found["version"], "wait_s": 5.0})
    raise AssertionError(f"no end of {found}\n{daemon.log()}")
