"""Nothing of a run outlives it: stubborn trees, a thousand runs without a zombie, a daemon that is PID 1."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tests.e2e.daemon import PROGRAM, DaemonUnderTest
from tests.host.test_keeper import Bench
from tests.waiting import eventually

from gpuward.host import keeper
from gpuward.host.runs import Runs, RunSpec, Spawned

pytestmark = pytest.mark.e2e

SLEEPERS = """
[pool.w]
engine = "command"
command = ["/bin/sleep", "1000"]
gpus-per-worker = 0
ready-after-s = 0.05
"""
PREPARES = "import os, signal, sys, time\nsignal.signal(15, signal.SIG_IGN); signal.signal(1, signal.SIG_IGN)\n"
CHILDREN = {
    "in its group": "",
    "in its own session": "os.setsid()",
    "of a double fork": "os.setsid()\n    if os.fork(): os._exit(0)",
    "that ignores every signal": "[signal.signal(n, signal.SIG_IGN) for n in range(1, 32) if n not in (9, 17, 19)]",
    "that is stopped": "note(); os.kill(os.getpid(), 19)",
    "that has no environment any more": "note(); os.execve('/bin/sleep', ['sleep', '1000'], {})",
    "that has closed everything": "os.closerange(0, 100)",
}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for pid in bench.left():
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("end", ["sys.exit(0)", "os.kill(os.getpid(), 9)", "os.abort()"], ids=["exit", "kill", "abort"])
@pytest.mark.parametrize("child", list(CHILDREN))
def test_no_child_outlives_the_main_process_however_it_ends(bench: Bench, child: str, end: str) -> None:
    pids = bench.root / "pid"
    code = f"""{PREPARES}
if os.fork() == 0:
    note = lambda: open('{pids}', 'w').write(str(os.getpid()))
    {CHILDREN[child]}
    note()
    while True: signal.pause()
time.sleep(0.15)
{end}
"""
    ending = bench.end(bench.python(code))

    assert ending.descendants_killed == 1
    assert bench.left() == ()
    assert not psutil.pid_exists(int(pids.read_text()))


def test_a_tree_that_forks_faster_than_it_is_looked_at_is_gone_in_the_end(bench: Bench) -> None:
    forks = f"""{PREPARES}
def grow(depth):
    for _ in range(3):
        if depth and os.fork() == 0:
            os.setsid()
            grow(depth - 1)
            while True: signal.pause()
if os.fork() == 0:
    grow(4)
    while True: signal.pause()
time.sleep(0.02)
"""
    ending = bench.end(bench.python(forks))

    assert ending.code == 0
    assert bench.left() == ()


class ForkedRuns(Runs):
    """Keepers without an interpreter of their own to start, which is most of their cost."""

    def _spawn(self, directory: Path, lock: int, wrapper: tuple[str, ...] = ()) -> Spawned:
        started, started_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                os.dup2(started_end, 1)
                os.dup2(lock, keeper.LOCK_FD)
                sys.argv = ["keeper", str(directory)]
                keeper.main()
            finally:
                os._exit(0)
        os.close(started_end)
        return Spawned(directory=directory, keeper_pid=pid, started_fd=started)


@pytest.mark.timeout(150)
def test_a_thousand_runs_leave_no_process_and_no_zombie(tmp_path: Path) -> None:
    runs = ForkedRuns(tmp_path / "runs")
    runs.prepare()
    before = len(psutil.Process().children(recursive=True))

    for run in range(1, 101):
        spawned = [runs.start(_true(tmp_path, f"pool/{index}", run)) for index in range(10)]
        for one in spawned:
            _reap(one)
        assert all((ending := runs.ending(f"pool/{index}", run)) and ending.code == 0 for index in range(10))

    assert len(psutil.Process().children(recursive=True)) == before
    assert not any(process.status() == psutil.STATUS_ZOMBIE for process in psutil.Process().children(recursive=True))


def test_a_daemon_with_many_short_runs_has_no_zombie() -> None:
    daemon = DaemonUnderTest()
    budget = "[pool.w.restart]\nmax-failures = 1000\ndelay-first-s = 0.01\ndelay-max-s = 0.01\n"
    daemon.start(
        SLEEPERS.replace('["/bin/sleep", "1000"]', '["/bin/false"]').replace("gpus-", "workers = 4\ngpus-") + budget
    )
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)

    eventually(lambda: all(worker["run"] >= 5 for worker in daemon.workers().values()), within_s=20)
    daemon.call("stop", {"all": True})
    eventually(lambda: all(worker["phase"] == "stopped" for worker in daemon.workers().values()), within_s=10)

    eventually(lambda: process.children(recursive=True) == [], within_s=5)
    daemon.close()


def test_the_rest_of_a_crashed_tree_is_gone_before_the_replacement_starts() -> None:
    daemon = DaemonUnderTest()
    marker = daemon.root / "others"
    lines = f"""
for pid in $(cat {marker} 2>/dev/null); do kill -0 $pid 2>/dev/null && echo alive $pid >> {marker}.alive; done
(setsid sleep 1000 & echo $! >> {marker}); sleep 1000 & echo $! >> {marker}
echo up; wait
"""
    script_path = daemon.write("worker.sh", lines)
    daemon.start(
        SLEEPERS.replace('["/bin/sleep", "1000"]', f'["/bin/sh", "{script_path}"]').replace(
            "ready-after-s = 0.05", 'ready-log = "up"'
        )
        + "[pool.w.restart]\ndelay-first-s = 0.01\ndelay-max-s = 0.01\n"
    )

    for run in range(1, 6):
        worker = daemon.until("w/0", lambda worker, run=run: worker["run"] == run and worker["ready"])
        os.kill(worker["pid"], signal.SIGKILL)
    daemon.until("w/0", lambda worker: worker["run"] == 6 and worker["ready"])

    assert len(marker.read_text().split()) >= 10
    assert not Path(f"{marker}.alive").exists()
    daemon.close()


@pytest.fixture
def contained() -> Iterator[DaemonUnderTest]:
    """A daemon that is PID 1 of a PID namespace of its own, as in a container without an init."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("nsenter"):
        pytest.skip("making PID namespaces needs root, unshare and nsenter")
    daemon = DaemonUnderTest()
    words = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", PROGRAM, "run", "--socket", daemon.socket]
    words += ["--state-dir", daemon.root / "st", "--runtime-dir", daemon.root / "rt", "--simulate", "1xH100-80GB"]
    words += ["--fleet", daemon.write("fleet.toml", SLEEPERS)]
    with (daemon.root / "daemon.log").open("ab") as log:
        daemon.process = subprocess.Popen(words, stdout=log, stderr=log, env=daemon.environment, cwd=daemon.root)
    yield daemon
    daemon._hang_up()
    if daemon.process.poll() is None:
        daemon.process.kill()
        daemon.process.wait()
    shutil.rmtree(daemon.root, ignore_errors=True)


def test_as_pid_1_of_a_container_the_daemon_reaps_strangers_too(contained: DaemonUnderTest) -> None:
    daemon = contained
    assert daemon.process is not None
    eventually(daemon.answers, within_s=20)
    daemon.until("w/0", lambda worker: worker["ready"])
    init = psutil.Process(daemon.process.pid).children()[0]
    strangers = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 4 & done"

    subprocess.run(["nsenter", "-t", str(init.pid), "-p", "-m", "/bin/sh", "-c", strangers], check=True, timeout=10)
    eventually(lambda: _sleepers(init) == 10, within_s=3)
    eventually(lambda: _sleepers(init) == 0, within_s=20)

    assert daemon.call("ping")["pid"] == 1
    assert daemon.worker("w/0")["restarts"] == 0
    init.terminate()
    assert daemon.process.wait(20) == 0


def _sleepers(init: psutil.Process) -> int:
    """Children called sleep; a zombie keeps its name. One that has not come to its exec yet is called sh."""
    count = 0
    for process in init.children():
        with suppress(psutil.NoSuchProcess):  # reaped since it was listed
            count += process.name() == "sleep"
    return count


def _true(root: Path, worker: str, run: int) -> RunSpec:
    return RunSpec(
        worker=worker,
        run=run,
        argv=("/bin/true",),
        environment={"PATH": os.defpath},
        working_directory="/",
        leases=(),
        share=False,
        log=root / worker / f"{run}.log",
        log_max_bytes=1 << 20,
        gpu_uuids=(),
        port=None,
        marker=f"GPUWARD_TEST_RUN={root}",
    )


def _reap(spawned: Spawned) -> None:
    os.waitpid(spawned.keeper_pid, 0)
    os.close(spawned.started_fd)
