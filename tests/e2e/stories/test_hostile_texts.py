"""Stories of fleet files that nobody should be able to harm the daemon with, whoever sends them."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Self

import pytest
from tests.e2e.daemon import DaemonUnderTest

from gpuward.control.client import Client, Refused

pytestmark = pytest.mark.e2e

ONE = '[pool.m]\nmodel = "org/m"\ngpus-per-worker = 1\n'
HOSTILE = {
    "hex.toml": ONE + "workers = 0x" + "f" * 5000,
    "dots.toml": "a" + ".a" * 5000 + " = 1",
    "size.toml": ONE + f'memory-max = "{"9" * 400}GiB"',
    "pattern.toml": '[pool.a]\nengine = "command"\ncommand = ["/x"]\nready-log = "' + "(" * 5000 + '"',
    "surrogate.yaml": 'VllmWorker:\n  model: "\\ud800"\n',
    "hex.yaml": "VllmWorker:\n  model: m\n  ServiceArgs:\n    workers: 0x" + "f" * 5000 + "\n",
    "pools.toml": "".join(f'[pool.p{number}]\nmodel = "m"\n' for number in range(1900)),
    "keys.toml": ONE + "".join(f"key{number} = 1\n" for number in range(19_000)),
    "crowd.toml": "".join(f'[pool.p{number}]\nmodel = "m"\nworkers = 10000\n' for number in range(256)),
    "indices.toml": "".join(f'[pool.p{number}]\nmodel = "m"\ngpus = {list(range(70))}\n' for number in range(250)),
    "items.yaml": "A:\n" + "".join(f"  k{number}: 1\n" for number in range(9000)),
}


class Pings:
    """A client that asks all the time; ``slowest_s`` of its answers."""

    def __init__(self, socket: str) -> None:
        self.slowest_s = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(socket,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _ask(self, socket: str) -> None:
        client = Client(socket, timeout_s=30.0)
        while not self._done.is_set():
            began_s = time.monotonic()
            client.call("ping")
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
        client.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_is_refused_and_nobody_waits_for_it(daemon: DaemonUnderTest, name: str) -> None:
    daemon.start(ONE)
    pid = daemon.call("ping")["pid"]

    refused = {}
    with Pings(daemon.socket) as pings:
        for op in ("plan", "diff", "apply"):
            try:
                answer = daemon.call(op, {"text": HOSTILE[name], "name": name, "directory": "/"})
                refused[op] = answer.get("plan", answer)["ok"] is False
            except Refused as error:
                refused[op] = error.code in {"bad-file", "refused"}

    assert refused == {"plan": True, "diff": True, "apply": True}
    assert daemon.call("ping")["pid"] == pid
    assert pings.slowest_s < 1.0  # 0.1 on a quiet machine; where the loop decoded itself the largest took seconds


def test_a_pool_is_not_scaled_beyond_what_a_host_takes(daemon: DaemonUnderTest) -> None:
    daemon.start(ONE)
    began_s = time.monotonic()

    scaled = daemon.ctl("scale", "m=9999")

    assert scaled.returncode == 6
    assert "cannot plan 9999 workers: one host takes at most 1024" in scaled.stderr
    assert time.monotonic() - began_s < 5


@pytest.mark.parametrize("name", ["hex.toml", "size.toml", "surrogate.yaml", "pattern.toml"])
def test_a_hostile_file_of_the_start_is_refused_with_its_name_and_costs_a_running_daemon_nothing(
    daemon: DaemonUnderTest, name: str
) -> None:
    path = daemon.write(name, HOSTILE[name])
    daemon.start(path, wait=False)
    assert daemon.process is not None
    code, told = daemon.process.wait(20), daemon.log()
    path.write_text(ONE if name.endswith(".toml") else "VllmWorker:\n  model: org/m\n")
    daemon.start(path)

    path.write_text(HOSTILE[name])
    drift = daemon.call("status")["fleet"]["drift_reason"]
    daemon.kill()
    daemon.start(path)

    assert code == 78
    assert f"cannot apply {path}" in told
    assert "Traceback" not in told
    assert name in str(drift)


def test_a_file_with_a_byte_order_mark_is_the_same_file_for_everybody(daemon: DaemonUnderTest) -> None:
    path = daemon.root / "fleet.toml"
    path.write_bytes(b"\xef\xbb\xbf" + ONE.replace("\n", "\r\n").encode())
    daemon.start(path)

    again = daemon.ctl("diff", str(path))

    assert daemon.call("status")["fleet"]["drift"] is False
    assert again.returncode == 0, again.stderr
    assert Path(path).read_bytes().startswith(b"\xef")


def test_a_ready_log_without_end_keeps_nobody_waiting(daemon: DaemonUnderTest) -> None:
    pytest.importorskip("re2", reason="this environment is older than requirements.lock: make venv")
    script = f"echo {'a' * 40}b; echo up; exec sleep 600"
    pool = f'[pool.x]\nengine = "command"\ncommand = ["/bin/sh", "-c", "{script}"]\ngpus-per-worker = 0\n'
    daemon.start(pool + 'ready-log = "(a+)+$|^up$"\n')

    with Pings(daemon.socket) as pings:
        daemon.all_ready()

    assert pings.slowest_s < 5
