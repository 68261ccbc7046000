"""Run directories: what a daemon finds of an earlier one's runs."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from tests.waiting import eventually

from gpuward.config.fleet import Pool
from gpuward.host.found_runs import found_runs
from gpuward.host.processes import boot_id, tree
from gpuward.host.runs import Runs, RunSpec, Spawned, kind_of_old

pytestmark = pytest.mark.e2e

POOL = Pool(name="m", engine="command", command=("/bin/sleep", "100"), env={"A": "ä"})


class Bench:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = Runs(root / "runs")
        self.runs.prepare()
        self.spawned: list[Spawned] = []

    def start(self, worker: str = "m/0", run: int = 1, *argv: str) -> Spawned:
        spec = RunSpec(
            worker=worker,
            run=run,
            argv=argv or ("/bin/sleep", "100"),
            environment={},
            working_directory="/",
            leases=(),
            share=False,
            log=self.root / "log",
            log_max_bytes=1 << 20,
            gpu_uuids=("GPU-1", "GPU-2"),
            port=20000,
            marker=f"GPUWARD_TEST={self.root}",
            pool=POOL,
            definition="abc",
        )
        self.spawned.append(self.runs.start(spec))
        return self.spawned[-1]

    def started(self, worker: str = "m/0", run: int = 1) -> int:
        return eventually(lambda: self.runs.main_identity(worker, run), within_s=10).pid

    def close(self) -> None:
        for spawned in self.spawned:
            for pid in tree(spawned.keeper_pid):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(spawned.keeper_pid, 0)
            os.close(spawned.started_fd)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def test_a_run_has_a_directory_for_its_sockets_that_goes_with_it(bench: Bench) -> None:
    sockets = bench.start().directory / "sockets"
    assert sockets.is_dir()

    bench.runs.forget("m/0")
    assert not sockets.exists()


def test_sockets_go_elsewhere_where_the_directory_of_the_run_is_too_deep_for_their_paths() -> None:
    assert Runs(Path("/run/gpuward/runs")).sockets("m/0", 1) == Path("/run/gpuward/runs/m/0/1/sockets")
    assert Runs(Path("/", "x" * 60)).sockets("m/0", 1) is None


def test_a_living_run_is_found_with_everything_that_taking_it_over_needs(bench: Bench) -> None:
    bench.start()
    bench.started()

    (found,) = found_runs(Runs(bench.runs.root))

    assert (found.worker, found.run, found.kept, found.pool) == ("m/0", 1, True, POOL)
    assert (found.gpu_uuids, found.port, found.definition) == (("GPU-1", "GPU-2"), 20000, "abc")
    assert found.started_s is not None


def test_a_run_that_is_over_is_found_as_such_with_its_number(bench: Bench) -> None:
    spawned = bench.start("m/0", 7, "/bin/true")
    os.waitid(os.P_PID, spawned.keeper_pid, os.WEXITED | os.WNOWAIT)

    (found,) = found_runs(bench.runs)

    assert (found.run, found.kept) == (7, False)
    ending = bench.runs.ending("m/0", 7)
    assert ending is not None
    assert ending.at_s is not None


def test_a_run_of_an_earlier_boot_is_none(bench: Bench) -> None:
    spawned = bench.start("m/0", 1, "/bin/true")
    os.waitid(os.P_PID, spawned.keeper_pid, os.WEXITED | os.WNOWAIT)
    spec = spawned.directory / "spec"
    spec.write_text(spec.read_text().replace("boot_id ", "boot_id x"))

    assert found_runs(bench.runs) == []


def test_a_run_directory_with_garbage_in_it_is_still_a_living_run(bench: Bench) -> None:
    spawned = bench.start()
    bench.started()
    (spawned.directory / "pool").write_bytes(b"\xff{")

    (found,) = found_runs(bench.runs)

    assert (found.kept, found.pool, found.definition) == (True, None, "abc")


def test_the_environment_of_a_run_is_for_its_user_only(bench: Bench) -> None:
    directory = bench.start().directory
    bench.started()

    assert directory.stat().st_mode & 0o077 == 0


def test_a_keeper_whose_directory_is_deleted_ends_its_tree_and_tells_the_end(bench: Bench) -> None:
    spawned = bench.start()
    main = bench.started()

    shutil.rmtree(spawned.directory)
    in_place = bench.runs.in_place("m/0", 1)
    os.kill(main, signal.SIGTERM)
    os.waitid(os.P_PID, spawned.keeper_pid, os.WEXITED | os.WNOWAIT)

    ending = bench.runs.ending("m/0", 1)
    assert not in_place
    assert ending is not None
    assert ending.signal == signal.SIGTERM


def test_without_room_for_a_compiled_keeper_its_source_serves(tmp_path: Path) -> None:
    (tmp_path / "keeper.pyc").mkdir(parents=True)

    bench = Bench(tmp_path)
    bench.start("m/0", 1, "/bin/true")
    os.waitid(os.P_PID, bench.spawned[0].keeper_pid, os.WEXITED | os.WNOWAIT)
    ending = bench.runs.ending("m/0", 1)
    bench.close()

    assert ending is not None
    assert ending.code == 0


DESCRIPTORS = 256


def fill(held: list[int]) -> int:
    """Open descriptors until there is none left; return how many there were."""
    with suppress(OSError):
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    return len(held)


@contextmanager
def few_descriptors(free: int) -> Iterator[list[int]]:
    """Let this process open only so many more files; what is put into the list is closed at the end."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    with ExitStack() as stack:
        stack.callback(lambda: [os.close(fd) for fd in held])
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, limits[1]))
        fill(held)
        for _ in range(free):
            os.close(held.pop())
        yield held


def test_a_start_that_runs_out_of_descriptors_leaves_none_open_wherever_it_stops(bench: Bench) -> None:
    left: dict[int, int] = {}

    for free in range(20):
        with few_descriptors(free) as held:
            before = len(held)
            try:
                bench.start("m/0", free + 1, "/bin/true")
            except OSError:
                left[free] = fill(held) - before
                continue
        break

    assert left == {free: free for free in left}
    assert len(left) >= 5  # the lock, the pipe's two ends, the keeper's errors, /dev/null: it stopped at each
    assert bench.spawned


def test_a_pool_may_be_called_as_a_file_of_the_daemon(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "keeper.pyc").write_bytes(b"of an earlier version")
    bench = Bench(tmp_path)

    bench.start("keeper.pyc/0", 1, "/bin/true")
    os.waitid(os.P_PID, bench.spawned[0].keeper_pid, os.WEXITED | os.WNOWAIT)
    ending = bench.runs.ending("keeper.pyc/0", 1)
    bench.close()

    assert ending is not None
    assert ending.code == 0


def test_directories_that_no_worker_can_have_are_no_runs(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    for name in ("m/x/1", "m/01/1", "m/٣/1", "m/99999999/1", "-m/0/1", "m/0/x", "m/1/²"):
        (runs.root / name).mkdir(parents=True)
        (runs.root / name / "spec").write_text(f"version 1\nboot_id {boot_id()}\n")

    assert found_runs(runs) == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("", ""),
        ("the lease /run/GPU-1.lock is held by another run or another daemon", "lease"),
        ("cannot execute /bin/serve: Cannot allocate memory", "resource"),
        ("[Errno 28] No space left on device", "resource"),
        ("the run's record has version 2, this keeper reads 1", "record"),
        ("cannot prepare the cgroup of /bin/serve: Permission denied", "prepare"),
        ("cannot enter /nowhere for /bin/serve: No such file or directory", "exec"),
    ],
)
def test_what_a_keeper_of_an_earlier_version_could_not_do_is_told_from_its_words(error: str, kind: str) -> None:
    assert kind_of_old(error) == kind
