"""Stories of processes whose names are no text: any user of the host can start one, and it is only a name."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

pytestmark = pytest.mark.e2e

NAMED = b"entra\xeenement\x1b]0;x\x07"

LISTENS = (
    "import socket,sys; s=socket.create_server(('127.0.0.1',int(sys.argv[2]))); print(flush=True); sys.stdin.read()"
)
HOLDS = """
import os,sys
at = sys.argv[2] + "/" + str(os.getpid())
open(at + ".new", "w").write("0 " + str(70 * 2**30) + "\\n")
os.rename(at + ".new", at)
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def strangers() -> Iterator[list[subprocess.Popen[bytes]]]:
    running: list[subprocess.Popen[bytes]] = []
    yield running
    for process in running:
        process.kill()
        process.communicate()


def a_stranger(strangers: list[subprocess.Popen[bytes]], program: str, argument: str) -> subprocess.Popen[bytes]:
    words = [NAMED, "-c", program, "--api-key=sk-secret", argument]
    process = subprocess.Popen(words, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    strangers.append(process)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_stranger_on_the_port_of_a_pool_is_named_as_far_as_it_can_be(
    daemon: DaemonUnderTest, strangers: list[subprocess.Popen[bytes]]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    stranger = a_stranger(strangers, LISTENS, str(port))
    daemon.start(f'[pool.m]\nmodel = "m"\ngpus-per-worker = 1\nport = {port}\n')

    waits = daemon.until("m/0", lambda worker: f"port {port}" in worker["reason"])

    assert rf"pid {stranger.pid} (entra\xeenement\x1b]0;x\x07) listens on it" in waits["reason"]
    assert daemon.ctl().returncode == 0


def test_a_stranger_that_holds_a_gpu_is_named_without_its_keys(
    daemon: DaemonUnderTest, strangers: list[subprocess.Popen[bytes]]
) -> None:
    daemon.start()
    claims = daemon.root / "rt" / "sim-claims"
    eventually(claims.is_dir, within_s=10)
    stranger = a_stranger(strangers, HOLDS, str(claims))
    daemon.write("fleet.toml", '[pool.m]\nmodel = "m"\ngpus = [0]\ngpu-memory-utilization = 0.9\n')

    daemon.ctl("apply", "fleet.toml", "--no-wait")
    waits = daemon.until("m/0", lambda worker: "held by" in worker["reason"])
    daemon.kill()
    daemon.start()

    assert rf"held by pid {stranger.pid} (root: entra\xeenement\x1b]0;x\x07, 70.0 GiB)" in waits["reason"]
    assert daemon.call("status")["gpus"][0]["foreign"][0]["pid"] == stranger.pid
    written = b"".join(path.read_bytes() for path in Path(daemon.root).rglob("*") if path.is_file())
    assert b"sk-secret" not in written
