"""Stories of what outlives its run: a dead main process is never ready, and nothing starts beside what is left."""

from __future__ import annotations

import os
import signal
import sys

import pytest
from tests.capabilities import without_the_right_to_kill_others
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

from gpuward.host.processes import Identity, alive, identify

pytestmark = pytest.mark.e2e

CHILD = """
import os, signal, time
ready, end = os.pipe()
if os.fork() == 0:
    os.setsid()
    {becomes}
    open("{root}/child.new", "w").write(str(os.getpid()))
    os.rename("{root}/child.new", "{root}/child")
    os.write(end, b"x")
    os.execve("/bin/sleep", ["sleep", "100"], {{}})
os.read(ready, 1)
print("up", flush=True)
signal.pause()
"""

POOL = """
[pool.w]
engine = "command"
command = ["{python}", "-I", "-S", "{root}/worker.py"]
gpus-per-worker = 0
ready-log = "up"
stop-timeout-s = 1
[pool.w.restart]
delay-first-s = 0.05
"""

ANOTHER_USER = "os.setresuid(12345, 12345, 12345)"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="another user's process needs root to be made")


def child_of(daemon: DaemonUnderTest) -> Identity:
    """Return who was started beside the main process, in a session and with an environment of its own."""
    identity = identify(int((daemon.root / "child").read_text()))
    assert identity is not None
    return identity


def start(daemon: DaemonUnderTest, becomes: str = "pass", *, powerless: bool = False) -> None:
    daemon.root.chmod(0o777)
    daemon.write("worker.py", CHILD.format(becomes=becomes, root=daemon.root))
    fleet = POOL.format(python=sys.executable, root=daemon.root)
    daemon.start(fleet, before_exec=without_the_right_to_kill_others if powerless else None)
    daemon.all_ready()


@AS_ROOT
def test_a_dead_main_process_is_never_ready_and_the_wait_names_who_is_left(daemon: DaemonUnderTest) -> None:
    start(daemon, ANOTHER_USER, powerless=True)
    child = child_of(daemon)

    os.kill(daemon.worker("w/0")["pid"], signal.SIGKILL)
    waits = daemon.until("w/0", lambda worker: not worker["ready"] and "pid" in worker["reason"], within_s=2)
    stopped = daemon.ctl("stop", "w/0", "--timeout", "1")
    still = daemon.worker("w/0")
    os.kill(child.pid, signal.SIGKILL)
    gone = daemon.until("w/0", lambda worker: worker["phase"] == "stopped")

    assert waits["phase"] == "stopping"
    assert f"pid {child.pid} (sleep, user 12345, state S)" in waits["reason"]
    assert stopped.returncode == 124
    assert (still["phase"], still["run"], alive(child)) == ("stopping", 1, False)
    assert (gone["last_exit"]["cause"], gone["last_exit"]["signal"]) == ("crash", signal.SIGKILL)


@AS_ROOT
def test_no_run_starts_beside_what_a_killed_keeper_left_not_even_with_the_next_daemon(daemon: DaemonUnderTest) -> None:
    start(daemon, ANOTHER_USER, powerless=True)
    child = child_of(daemon)

    os.kill(daemon.worker("w/0")["keeper_pid"], signal.SIGKILL)
    daemon.until("w/0", lambda worker: f"pid {child.pid} (sleep" in worker["reason"], within_s=5)
    daemon.kill()
    daemon.start(before_exec=without_the_right_to_kill_others)
    waits = daemon.until("w/0", lambda worker: f"pid {child.pid} (sleep" in worker["reason"], within_s=5)
    with pytest.raises(AssertionError, match="stays"):
        daemon.until("w/0", lambda worker: worker["run"] != 1 or worker["phase"] != "stopping", within_s=3)
    os.kill(child.pid, signal.SIGKILL)
    again = daemon.until("w/0", lambda worker: worker["ready"])
    os.kill(child_of(daemon).pid, signal.SIGKILL)  # or the last stop would wait for whom this daemon may not kill

    assert (waits["phase"], waits["run"]) == ("stopping", 1)
    assert again["run"] == 2


def test_a_frozen_keeper_does_not_keep_a_dead_worker_ready(daemon: DaemonUnderTest) -> None:
    start(daemon)
    worker = daemon.worker("w/0")

    os.kill(worker["keeper_pid"], signal.SIGSTOP)
    os.kill(worker["pid"], signal.SIGKILL)

    daemon.until("w/0", lambda worker: worker["ready"] and worker["run"] == 2, within_s=8)


@pytest.mark.parametrize("adopted", [False, True], ids=["started by this daemon", "by an earlier one"])
def test_what_left_its_session_and_its_environment_dies_with_a_killed_keeper(
    daemon: DaemonUnderTest, adopted: bool
) -> None:
    start(daemon)
    child = child_of(daemon)
    if adopted:
        daemon.kill()
        daemon.start()
    tree = daemon.root / "rt" / "runs" / "w" / "0" / "1" / "tree"
    if adopted:
        eventually(lambda: tree.exists() and f"member {child.pid} " in tree.read_text(), within_s=15)

    os.kill(daemon.worker("w/0")["keeper_pid"], signal.SIGKILL)
    daemon.until("w/0", lambda worker: worker["run"] == 2)

    assert not alive(child)
