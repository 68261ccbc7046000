"""The keeper with real processes: how a run ends, and that nothing of it is left."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.capabilities import without_the_right_to_kill_others
from tests.waiting import eventually

from gpuward.host.keeper import END_UNWRITTEN
from gpuward.host.processes import alive, find_marked, identify, tree
from gpuward.host.runs import Ending, Runs, RunSpec, Spawned, StillRunning

pytestmark = pytest.mark.e2e


class Bench:
    """Starts runs of one worker below a directory of its own and cleans up after them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = Runs(root / "runs")
        self.runs.prepare()
        self.number = 0
        self.marker = f"GPUWARD_TEST_RUN={root}"

    def start(self, *argv: str, **known: object) -> Spawned:
        self.number += 1
        defaults: dict[str, object] = {
            "worker": "pool/0",
            "run": self.number,
            "argv": argv,
            "working_directory": "/",
            "leases": (),
            "environment": {"PATH": os.environ["PATH"], "GPUWARD_TEST_RUN": str(self.root)},
            "share": False,
            "log": self.root / f"{self.number}.log",
            "log_max_bytes": 1 << 20,
            "gpu_uuids": (),
            "port": None,
            "marker": self.marker,
        }
        return self.runs.start(RunSpec(**{**defaults, **known}))  # type: ignore[arg-type]

    def python(self, code: str, **known: object) -> Spawned:
        return self.start(sys.executable, "-I", "-S", "-c", code, **known)

    def main_pid(self) -> int:
        identity = eventually(lambda: self.runs.main_identity("pool/0", self.number), within_s=10)
        return identity.pid

    def end(self, spawned: Spawned) -> Ending:
        os.waitpid(spawned.keeper_pid, 0)
        os.close(spawned.started_fd)
        ending = self.runs.ending("pool/0", self.number)
        assert ending is not None
        return ending

    def output(self) -> str:
        return (self.root / f"{self.number}.log").read_text()

    def left(self) -> tuple[int, ...]:
        return find_marked(self.marker.encode())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    left = bench.left()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == ()


def test_the_exit_code_and_the_output_are_kept(bench: Bench) -> None:
    spawned = bench.python("print('hello', flush=True); raise SystemExit(7)")

    ending = bench.end(spawned)

    assert (ending.code, ending.signal, ending.error, bench.output()) == (7, None, "", "hello\n")


def test_a_signal_is_told_from_an_exit_code(bench: Bench) -> None:
    spawned = bench.python("import os; os.kill(os.getpid(), 11)")

    ending = bench.end(spawned)

    assert (ending.code, ending.signal) == (None, 11)


def test_a_program_that_is_not_there_is_an_error_with_its_name(bench: Bench) -> None:
    ending = bench.end(bench.start("/no/such/program"))

    assert ending.error == "cannot execute /no/such/program: No such file or directory"
    assert ending.error_kind == "exec"
    assert bench.runs.main_identity("pool/0", 1) is None


def test_a_working_directory_that_is_not_there_is_named(bench: Bench) -> None:
    ending = bench.end(bench.start("/bin/true", working_directory="/no/such/place"))

    assert ending.error == "cannot enter /no/such/place for /bin/true: No such file or directory"


TREE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def child(prepare):
    if os.fork() == 0:
        prepare()
        signal.pause()
def own_session(): os.setsid()
def double_fork():
    os.setsid()
    if os.fork(): os._exit(0)
child(lambda: None); child(own_session); child(double_fork)
time.sleep(0.2)
print('ready', flush=True)
"""


@pytest.mark.parametrize("ends", ["raise SystemExit(3)", "os.kill(os.getpid(), 9)"], ids=["exit", "crash"])
def test_no_descendant_outlives_the_main_process(bench: Bench, ends: str) -> None:
    spawned = bench.python(TREE + ends)

    ending = bench.end(spawned)

    assert bench.left() == ()
    assert ending.descendants_killed == 3


SHARED = """
import os, signal, time
from multiprocessing import resource_tracker, shared_memory
shared = shared_memory.SharedMemory(create=True, size=4096)
tracker = resource_tracker._resource_tracker._pid
def ignores_sigterm():  # the first thing that a tracker does once it runs
    lines = open(f'/proc/{tracker}/status').read().splitlines()
    return any(int(line[7:], 16) & 1 << 14 for line in lines if line.startswith('SigIgn:'))
while not ignores_sigterm(): time.sleep(0.01)
print(shared.name, flush=True)
if os.fork() == 0: signal.pause()
"""


def test_shared_memory_of_a_killed_program_is_unlinked_by_its_own_tracker(bench: Bench) -> None:
    ending = bench.end(bench.python(SHARED + "os.kill(os.getpid(), 9)"))

    name = bench.output().split()[0]
    assert (bench.left(), ending.signal, ending.descendants_killed) == ((), 9, 1)
    assert not Path("/dev/shm", name).exists()


def test_a_tracker_that_does_not_end_is_killed_too(bench: Bench) -> None:
    ending = bench.end(bench.python(SHARED + "os.kill(tracker, 19); os.kill(os.getpid(), 9)"))

    Path("/dev/shm", bench.output().split()[0]).unlink()
    assert (bench.left(), ending.descendants_killed) == ((), 2)


def test_a_child_that_holds_the_output_does_not_delay_the_end(bench: Bench) -> None:
    code = "import os, signal\nif os.fork() == 0: signal.pause()\nprint('bye', flush=True)"

    bench.end(bench.python(code))

    assert bench.output() == "bye\n"


def test_a_killed_keeper_takes_the_main_process_along(bench: Bench) -> None:
    spawned = bench.python("import signal; signal.pause()")
    main = identify(bench.main_pid())
    assert main is not None

    os.kill(spawned.keeper_pid, signal.SIGKILL)
    os.waitpid(spawned.keeper_pid, 0)
    os.close(spawned.started_fd)

    eventually(lambda: not alive(main), within_s=5)  # not every init reaps, so it may stay as a zombie
    assert bench.runs.ending("pool/0", 1) is None


def test_two_runs_of_one_worker_never_live_together(bench: Bench) -> None:
    spawned = bench.python("import signal; signal.pause()")
    main_pid = bench.main_pid()

    with pytest.raises(StillRunning, match="a keeper of pool/0 is alive"):
        bench.start("/bin/true")

    bench.number = 1
    os.kill(main_pid, signal.SIGKILL)
    bench.end(spawned)


def test_a_lease_that_another_holds_keeps_the_worker_from_starting(bench: Bench) -> None:
    lease = bench.root / "GPU-0.lock"
    with lease.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_SH)

        ending = bench.end(bench.start("/bin/true", leases=(str(lease),)))
        shared = bench.end(bench.start("/bin/true", leases=(str(lease),), share=True))

    assert ending.error == f"the lease {lease} is held by another run or another daemon"
    assert ending.error_kind == "lease"
    assert (shared.error, shared.code) == ("", 0)


def test_a_lease_is_open_to_every_user_and_never_a_link(bench: Bench) -> None:
    lease, link, elsewhere = (bench.root / name for name in ("GPU-1.lock", "GPU-2.lock", "elsewhere"))
    link.symlink_to(elsewhere)

    taken = bench.end(bench.start("/bin/true", leases=(str(lease),)))
    refused = bench.end(bench.start("/bin/true", leases=(str(link),)))

    assert (taken.error, lease.stat().st_mode & 0o777) == ("", 0o644)
    assert refused.error == f"the lease {link} cannot be taken: Too many levels of symbolic links"
    assert not elsewhere.exists()


def test_a_lease_of_another_user_is_locked_though_it_cannot_be_written(bench: Bench) -> None:
    lease = bench.root / "GPU-3.lock"
    lease.touch(0o444)

    with lease.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused = bench.end(bench.start("/bin/true", leases=(str(lease),)))
    taken = bench.end(bench.start("/bin/true", leases=(str(lease),)))

    assert (refused.error, taken.error) == (f"the lease {lease} is held by another run or another daemon", "")


OTHERS = """
import os, time
ready, end = os.pipe()
if os.fork() == 0:
    os.setresuid(12345, 12345, 12345)
    os.write(end, b"x")
    time.sleep(60)
os.read(ready, 1)
raise SystemExit(5)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's process needs root to be made")
def test_a_keeper_outlasts_a_process_that_it_may_not_kill(bench: Bench) -> None:
    child = os.fork()
    if child == 0:
        without_the_right_to_kill_others()
        bench.python(OTHERS)
        os._exit(0)
    os.waitpid(child, 0)
    bench.number = 1
    main_pid = bench.main_pid()
    keeper = bench.runs.keeper_identity("pool/0", 1)
    assert keeper is not None
    eventually(lambda: identify(main_pid) is None, within_s=10)
    left = tree(keeper.pid)

    waited = alive(keeper), bench.runs.ending("pool/0", 1)
    os.kill(left[0], signal.SIGKILL)
    ending = eventually(lambda: bench.runs.ending("pool/0", 1), within_s=10)

    assert (len(left), waited) == (1, (True, None))
    assert (ending.code, ending.error) == (5, "")


def test_an_exit_code_is_kept_on_a_full_disk(bench: Bench, tmp_path: Path) -> None:
    disk = tmp_path / "runs" / "pool"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=60", "tmpfs", disk], check=False).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        spawned = bench.python(
            "import time\nwhile not input_there(): time.sleep(0.01)\nraise SystemExit(9)".replace(
                "input_there()", f"__import__('os').path.exists('{tmp_path}/go')"
            ),
            log=disk / "out.log",
        )
        bench.main_pid()
        with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        with suppress(OSError):
            for number in range(100):
                (disk / f"inode-{number}").touch()
        (tmp_path / "go").touch()

        ending = bench.end(spawned)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)

    assert (ending.code, ending.signal, ending.error) == (9, None, "")


def test_output_that_is_lost_on_a_full_disk_is_said_at_once_and_counted(bench: Bench) -> None:
    (bench.root / "full.log").symlink_to("/dev/full")
    spawned = bench.python("print('x' * 99, flush=True); __import__('signal').pause()", log=bench.root / "full.log")

    trouble = eventually(lambda: bench.runs.log_trouble("pool/0", 1), within_s=10)
    os.kill(bench.main_pid(), signal.SIGKILL)
    ending = bench.end(spawned)

    assert (trouble, ending.log_lost_bytes) == ("No space left on device", 100)


def unwritable(directory: Path) -> None:
    """Keep the keeper from writing its end record there."""
    (directory / ".end.new").unlink()
    (directory / ".end.new").mkdir()


def test_an_end_that_cannot_be_written_in_the_run_directory_is_written_beside_the_log(bench: Bench) -> None:
    log = bench.root / "logs" / "pool/0" / "1.log"
    spawned = bench.python("import signal; signal.pause()", log=log)
    main = bench.main_pid()
    unwritable(spawned.directory)

    os.kill(main, signal.SIGSEGV)
    _, status = os.waitpid(spawned.keeper_pid, 0)
    ending = Runs(bench.runs.root, bench.root / "logs").ending("pool/0", 1)

    assert status == 0
    assert ending is not None
    assert ending.signal == signal.SIGSEGV


def test_an_end_that_cannot_be_written_at_all_is_told_by_the_exit_status(bench: Bench) -> None:
    spawned = bench.python("import signal; signal.pause()")
    main = bench.main_pid()
    unwritable(spawned.directory)
    (bench.root / "1.log.end").mkdir()

    os.kill(main, signal.SIGKILL)
    _, status = os.waitpid(spawned.keeper_pid, 0)

    assert os.waitstatus_to_exitcode(status) == END_UNWRITTEN


def test_the_worker_inherits_no_descriptor_and_no_lock(bench: Bench) -> None:
    bench.end(bench.python("import os; print(sorted(os.listdir('/proc/self/fd')), flush=True)"))

    assert bench.output() == "['0', '1', '2', '3']\n"  # 3 is the listing's own


def test_a_flood_of_output_is_kept_within_twice_the_limit(bench: Bench) -> None:
    code = "import os\nfor i in range(400): os.write(1, b'x' * 9999 + b'\\n')"

    bench.end(bench.python(code, log_max_bytes=100_000))

    sizes = [path.stat().st_size for path in bench.root.glob("1.log*")]
    assert len(sizes) == 2
    assert all(size < 200_000 for size in sizes)


def test_the_keeper_survives_what_a_terminal_or_a_service_manager_sends(bench: Bench) -> None:
    spawned = bench.python("import signal; signal.pause()")
    main_pid = bench.main_pid()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(spawned.keeper_pid, number)

    assert main_pid in tree(spawned.keeper_pid)
    os.kill(main_pid, signal.SIGKILL)
    assert bench.end(spawned).signal == signal.SIGKILL


def test_the_worker_is_the_kernels_first_choice_when_memory_runs_out(bench: Bench) -> None:
    bench.end(bench.python("print(open('/proc/self/oom_score_adj').read().strip(), flush=True)"))

    assert int(bench.output()) >= 200


def test_the_start_is_announced_on_the_descriptor(bench: Bench) -> None:
    spawned = bench.start("/bin/true")

    closed = os.read(spawned.started_fd, 1)

    assert closed == b""
    assert bench.runs.main_identity("pool/0", 1) is not None
    assert bench.end(spawned).code == 0
