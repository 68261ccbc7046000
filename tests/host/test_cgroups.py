"""A cgroup for each run: how it is had, on trees made of plain files, and joining one of the kernel's own."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

from gpuward.host.cgroups import Cgroups, Host, Seat, find_cgroups
from gpuward.host.runs import Ending, Runs, RunSpec, Spawned

MIB = 1024 * 1024


class Tree:
    """A cgroup v2 mount of plain files, with the daemon in the group ``own``."""

    def __init__(self, root: Path, own: str = "/app", controllers: str = "cpu memory pids") -> None:
        self.mount, self.own = root / "cgroup", own
        (self.mount / own.lstrip("/")).mkdir(parents=True)
        (self.mount / "cgroup.controllers").write_text(controllers)
        self.proc = root / "proc"
        self.proc.mkdir()
        (self.proc / "cgroup").write_text(f"1:name=systemd:/\n0::{own}\n")
        (self.proc / "mounts").write_text(f"proc /proc proc rw 0 0\ncgroup2 {self.mount} cgroup2 rw 0 0\n")

    def refuse_children(self, folder: Path) -> None:
        """As the kernel does where processes are in the group: the file cannot be written."""
        (folder / "cgroup.subtree_control").mkdir()

    def find(self, *, root: bool = True, systemd: bool = False) -> Cgroups:
        return find_cgroups(Host(proc=self.proc, root=root, systemd=systemd), "i1")


def text(path: Path) -> str:
    return path.read_text()


def test_outside_of_systemd_a_run_gets_a_limited_group_beside_the_daemons(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.refuse_children(tree.mount / "app")

    cgroups = tree.find()
    seat = cgroups.seat("decode/0", 7, 40 * MIB)

    assert cgroups.refusal == ""
    assert seat == Seat(path=tree.mount / "gpuward-i1" / "decode.0.7")
    assert (text(seat.path / "memory.max"), text(seat.path / "memory.oom.group")) == (str(40 * MIB), "1")
    assert text(tree.mount / "cgroup.subtree_control") == "+memory"
    assert text(tree.mount / "gpuward-i1" / "cgroup.subtree_control") == "+memory"


def test_a_run_without_a_limit_has_a_group_too_for_its_kills_are_counted_there(tmp_path: Path) -> None:
    seat = Tree(tmp_path).find().seat("decode/0", 1, None)

    assert seat is not None
    assert text(seat.path / "memory.max") == "max"


def test_a_group_that_a_lost_keeper_left_behind_goes_with_the_next_run(tmp_path: Path) -> None:
    cgroups = Tree(tmp_path).find()
    old = tmp_path / "cgroup/app/gpuward-i1/decode.0.1"
    other = tmp_path / "cgroup/app/gpuward-i1/decode.01.1"
    old.mkdir(parents=True)
    other.mkdir()

    cgroups.seat("decode/0", 2, None)

    assert not old.exists()
    assert other.exists()


def test_a_place_that_refuses_everywhere_is_said_with_the_kernels_word(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    for folder in (tree.mount, tree.mount / "app"):
        tree.refuse_children(folder)

    cgroups = tree.find()

    assert cgroups.refusal.startswith("no cgroup at or above our own (/app) can limit memory for its children; ")
    assert cgroups.refusal.endswith(f"{tree.mount}: Is a directory")
    assert cgroups.seat("decode/0", 1, 40 * MIB) is None


def test_a_host_without_the_memory_controller_is_named_with_what_it_has(tmp_path: Path) -> None:
    cgroups = Tree(tmp_path, controllers="hugetlb").find()

    assert cgroups.refusal.startswith("cgroup v2 has no memory controller here")
    assert "hugetlb" in cgroups.refusal


def test_a_host_with_the_old_cgroups_only_is_named(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    (tree.proc / "mounts").write_text("cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n")

    assert tree.find().refusal == "no cgroup v2 is mounted here"


def test_under_systemd_the_services_own_tree_is_never_touched(tmp_path: Path) -> None:
    tree = Tree(tmp_path, own="/system.slice/gpuward.service")
    before = sorted(tmp_path.rglob("*"))

    cgroups = tree.find(root=False, systemd=True)

    assert "not root" in cgroups.refusal
    assert "219/CGROUP" in cgroups.refusal
    assert sorted(tmp_path.rglob("*")) == before


def test_a_scope_is_a_command_around_the_keeper_and_a_path_known_beforehand() -> None:
    cgroups = Cgroups(Path("/sys/fs/cgroup/gpuward.slice"), scope=("systemd-run", "--scope"))

    seat = cgroups.seat("decode/0", 7, 40 * MIB)

    assert seat is not None
    assert seat.path == Path("/sys/fs/cgroup/gpuward.slice/gpuward-decode.0.7.scope")
    assert seat.wrapper == (
        "systemd-run", "--scope", "-p", f"MemoryMax={40 * MIB}", "--unit=gpuward-decode.0.7.scope", "--"
    )  # fmt: skip


def real_cgroup2() -> Path | None:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    mount = next((Path(words[1]) for words in mounts if words[2] == "cgroup2"), None)
    return mount if mount is not None and os.access(mount, os.W_OK) else None


class Bench:
    """Starts one run in a seat, below a directory of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = Runs(root / "runs")
        self.runs.prepare()

    def start(self, code: str, seat: Seat) -> Spawned:
        return self.runs.start(
            RunSpec(
                worker="pool/0", run=1, argv=(sys.executable, "-I", "-S", "-c", code), environment={},
                working_directory="/", leases=(), share=False, log=self.root / "log", log_max_bytes=1 << 20,
                gpu_uuids=(), port=None, marker=f"GPUWARD_TEST_RUN={self.root}", seat=seat,
            )
        )  # fmt: skip

    def end(self, spawned: Spawned) -> Ending | None:
        os.waitpid(spawned.keeper_pid, 0)
        os.close(spawned.started_fd)
        return self.runs.ending("pool/0", 1)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def group() -> Iterator[Path]:
    mount = real_cgroup2()
    if mount is None:
        pytest.skip("no cgroup2 mount that we may write to")
    group = mount / f"gpuward-test-{os.getpid()}"
    group.mkdir()
    yield group
    if group.exists():
        group.rmdir()


@pytest.mark.e2e
@pytest.mark.root
def test_the_worker_and_its_children_are_in_the_runs_group_and_the_keeper_is_not(bench: Bench, group: Path) -> None:
    code = "import os, signal\nif os.fork() == 0: os.setsid()\nprint('up', flush=True)\nsignal.pause()"
    spawned = bench.start(code, Seat(path=group))
    main = eventually(lambda: bench.runs.main_identity("pool/0", 1), within_s=10)

    eventually(lambda: (bench.root / "log").read_text() == "up\nup\n", within_s=10)
    inside = {int(pid) for pid in text(group / "cgroup.procs").split()}
    os.kill(main.pid, signal.SIGKILL)
    bench.end(spawned)

    assert main.pid in inside
    assert len(inside) == 2
    assert spawned.keeper_pid not in inside
    assert not group.exists()


def fake_group(root: Path, events: str | None) -> Path:
    group = root / "group"
    group.mkdir()
    if events is not None:
        (group / "memory.events").write_text(events)
    return group


@pytest.mark.e2e
def test_kills_in_the_runs_own_group_are_proof(bench: Bench) -> None:
    group = fake_group(bench.root, "low 0\nhigh 0\nmax 12\noom 2\noom_kill 2\noom_group_kill 1\n")

    ending = bench.end(bench.start("import os; os.kill(os.getpid(), 9)", Seat(path=group)))

    assert ending is not None
    assert (ending.signal, ending.oom_kills, ending.oom_proven) == (9, 2, True)
    assert text(group / "cgroup.procs") == "0"


@pytest.mark.e2e
def test_a_group_that_counts_nothing_leaves_the_count_of_the_host_which_is_no_proof(bench: Bench) -> None:
    group = fake_group(bench.root, None)

    ending = bench.end(bench.start("pass", Seat(path=group)))

    assert ending is not None
    assert (ending.code, ending.oom_proven) == (0, False)


@pytest.mark.e2e
def test_a_group_that_is_gone_keeps_the_worker_from_starting_unlimited(bench: Bench) -> None:
    ending = bench.end(bench.start("pass", Seat(path=bench.root / "gone")))

    assert ending is not None
    assert ending.error.startswith("cannot prepare the cgroup of ")
    assert ending.error.endswith("No such file or directory")


@pytest.mark.e2e
def test_a_limit_is_kept_or_the_plan_and_the_log_say_why_not() -> None:
    daemon = DaemonUnderTest("1xH100-80GB")
    fleet = '[pool.a]\nengine = "simulated"\ngpu-memory-utilization = 0.5\nmemory-max = "2GiB"\n'
    try:
        daemon.start(fleet)
        pid = daemon.all_ready()["a/0"]["pid"]

        kept = "gpuward" in text(Path(f"/proc/{pid}/cgroup"))
        warnings = daemon.call("plan", {"text": fleet, "name": "fleet.toml", "directory": "/"})["warnings"]
        logged = [json.loads(line) for line in daemon.log().splitlines() if "memory-max-not-enforced" in line]
    finally:
        daemon.close()

    said = [one["message"] for one in warnings if one["code"] == "memory-max-not-enforced"]
    assert kept != bool(said)
    assert [event["reason"] for event in logged] == said
    assert all(event["level"] == "warning" for event in logged)
    assert kept or said[0].startswith("pool 'a': memory-max = 2147483648 is not enforced: ")


@pytest.mark.e2e
def test_what_a_wrapper_said_that_made_no_keeper_is_the_reason(bench: Bench) -> None:
    wrapper = ("/bin/sh", "-c", "echo Failed to start transient scope unit: no bus >&2; exit 1", "--")

    ending = bench.end(bench.start("pass", Seat(path=bench.root, wrapper=wrapper)))

    assert ending is None
    said = bench.runs.stillborn("pool/0", 1)
    assert said == "cannot prepare the keeper: Failed to start transient scope unit: no bus"
