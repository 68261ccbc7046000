"""Named instants between two effects, where a test may end the daemon. Does nothing unless a test asks for it.

``GPUWARD_BOUNDARIES=PATH`` appends the name of each instant to a file, ``GPUWARD_CRASH_AT=N`` kills this process with
SIGKILL at the N-th. Whatever the daemon does in an order that matters has one of these before and after it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _from_environment() -> Callable[[str], None]:
    path = os.environ.get("GPUWARD_BOUNDARIES")
    if path is None:
        return lambda _name: None
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    crash_at = int(os.environ.get("GPUWARD_CRASH_AT", "0"))
    passed = 0

    def told(name: str) -> None:
        nonlocal passed
        passed += 1
        os.write(fd, f"{name}\n".encode())
        if passed == crash_at:
            os.kill(os.getpid(), signal.SIGKILL)

    return told


boundary = _from_environment()
"""``boundary(name)``: the instant called ``name`` has come."""


@contextmanager
def around(name: str) -> Iterator[None]:
    """A boundary before and one after an effect; none after one that failed."""
    boundary(f"before {name}")
    yield
    boundary(f"after {name}")
