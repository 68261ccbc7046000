"""The story of a user whose process table is full: nothing can be started, and the daemon waits that out."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Iterator

import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.getuid() != 0, reason="only root may become a user with a process limit of its own"),
]

USER = 60123
PROCESSES_MAX = 60
ONE = """
[pool.m]
engine = "command"
command = ["/bin/sleep", "1000"]
ready-after-s = 0
gpus-per-worker = 0
"""


AS_THE_USER = (
    "setpriv",
    f"--reuid={USER}",
    f"--regid={USER}",
    "--clear-groups",
    "--inh-caps=+dac_override",
    "--ambient-caps=+dac_override",
)
"""The one capability is for tests that are run from a home that is closed to others."""


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES_MAX, PROCESSES_MAX))


def a_sleeper() -> subprocess.Popen[bytes]:
    """A process of the user; OSError where it cannot be."""
    words = [*AS_THE_USER, "/bin/sh", "-c", "echo up; exec /bin/sleep 100"]
    sleeper = subprocess.Popen(words, preexec_fn=limit, stdout=subprocess.PIPE)  # noqa: PLW1509
    assert sleeper.stdout is not None
    if not sleeper.stdout.readline():
        sleeper.communicate()
        raise OSError("no room for it")
    return sleeper


@pytest.fixture
def crowd() -> Iterator[list[subprocess.Popen[bytes]]]:
    sleepers: list[subprocess.Popen[bytes]] = []
    yield sleepers
    disperse(sleepers)


def disperse(sleepers: list[subprocess.Popen[bytes]]) -> None:
    while sleepers:
        sleeper = sleepers.pop()
        sleeper.kill()
        sleeper.communicate()


def test_a_full_process_table_is_waited_out(daemon: DaemonUnderTest, crowd: list[subprocess.Popen[bytes]]) -> None:
    os.chown(daemon.root, USER, USER)
    daemon.start(ONE, before_exec=limit, under=AS_THE_USER)
    first = daemon.all_ready()["m/0"]
    with contextlib.suppress(OSError):
        while len(crowd) < PROCESSES_MAX:
            crowd.append(a_sleeper())

    os.kill(first["pid"], signal.SIGKILL)
    waits = daemon.until("m/0", lambda worker: "Resource temporarily unavailable" in worker["reason"])
    assert daemon.process is not None
    lives = daemon.process.poll() is None
    room = PROCESSES_MAX - len(crowd)
    disperse(crowd)
    again = daemon.until("m/0", lambda worker: worker["ready"], within_s=60)

    assert 0 < room < PROCESSES_MAX
    assert lives
    assert waits["phase"] in {"backoff", "blocked"}
    assert again["run"] > first["run"]
    eventually(daemon.answers, within_s=5)
