"""Stories of a runtime directory or a socket that is deleted under a living daemon, as logind does at a logout."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

from gpuward.control.protocol import events_path

pytestmark = pytest.mark.e2e

POOL = """
[pool.m]
model = "org/m"
workers = 2
gpus-per-worker = 1
[pool.m.restart]
delay-first-s = 0.05
"""

WITHOUT_GPUS = """
[pool.m]
engine = "command"
command = ["/bin/sleep", "1000"]
gpus-per-worker = 0
ready-after-s = 0.05
[pool.m.restart]
delay-first-s = 0.05
"""


def notices(daemon: DaemonUnderTest) -> str:
    return " | ".join(daemon.call("status")["daemon"]["notices"])


def kinds(daemon: DaemonUnderTest) -> list[str]:
    return [event["kind"] for event in daemon.call("events", {"limit": 1000})["events"]]


def kill(daemon: DaemonUnderTest, worker: str) -> None:
    os.kill(daemon.worker(worker)["pid"], signal.SIGKILL)


def test_a_worker_comes_back_though_the_runtime_directory_was_deleted(daemon: DaemonUnderTest) -> None:
    daemon.start(POOL)
    daemon.all_ready()
    shutil.rmtree(daemon.root / "rt")

    kill(daemon, "m/0")
    again = daemon.until("m/0", lambda worker: worker["run"] == 2 and worker["ready"])
    eventually(lambda: "runtime-directory-made" in kinds(daemon), within_s=10)
    daemon.kill()
    daemon.start()

    assert again["restarts"] == 1
    assert daemon.worker("m/0")["pid"] == again["pid"]


def test_a_daemon_that_lost_its_runtime_directory_still_keeps_others_out_of_it(daemon: DaemonUnderTest) -> None:
    daemon.start(POOL)
    daemon.all_ready()
    shutil.rmtree(daemon.root / "rt")
    eventually(lambda: "runtime-directory-made" in kinds(daemon), within_s=10)

    assert daemon.process is not None
    second = DaemonUnderTest()
    try:
        second.start(POOL, wait=False, runtime=daemon.root / "rt")
        assert second.process is not None
        refused = second.process.wait(20)
        log = second.log()
    finally:
        second.close()

    assert refused != 0
    assert f"the gpuward with pid {daemon.process.pid} works in" in log


def test_starts_wait_where_the_runtime_directory_cannot_be_made_again_and_none_counts(daemon: DaemonUnderTest) -> None:
    daemon.start(WITHOUT_GPUS)
    daemon.all_ready()
    shutil.rmtree(daemon.root / "rt")
    (daemon.root / "rt").touch()

    kill(daemon, "m/0")
    waits = daemon.until("m/0", lambda worker: "refusal 2" in worker["reason"])
    told = eventually(lambda: (said := notices(daemon)) and "cannot be made again" in said and said, within_s=10)
    (daemon.root / "rt").unlink()
    again = daemon.until("m/0", lambda worker: worker["ready"])
    eventually(lambda: "cannot be made again" not in notices(daemon), within_s=10)

    assert waits["phase"] == "blocked"
    assert f"the runtime directory {daemon.root}/rt was deleted" in told
    assert (again["run"], again["restarts"]) == (2, 1)
    assert "failed" not in kinds(daemon)


@pytest.mark.parametrize("lock", [False, True], ids=["alone", "with its lock"])
def test_a_deleted_socket_is_made_again(daemon: DaemonUnderTest, lock: bool) -> None:
    daemon.start(POOL)
    daemon.all_ready()
    published = Path(events_path(daemon.socket))
    for path in (daemon.socket, published, *([daemon.socket + ".lock"] if lock else [])):
        Path(path).unlink()

    eventually(lambda: daemon.ctl("ping").returncode == 0, within_s=10)

    assert "socket-made" in kinds(daemon)
    assert Path(daemon.socket + ".lock").exists()
    assert published.stat().st_mode & 0o777 == 0o660
