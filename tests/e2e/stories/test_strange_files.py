"""Stories of state that is not what it was: what runs is taken over, what cannot be used is set aside and said."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.e2e.daemon import DaemonUnderTest

pytestmark = pytest.mark.e2e

FLEET = '[pool.m]\nworkers = 2\ngpus-per-worker = 1\nengine = "simulated"\n'


def alive(pid: int) -> bool:
    """Whether a process runs; who is to reap an orphan may be late."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def gigabytes(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, 3 * 10**9)


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def changed(**values: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        document = json.loads(path.read_bytes())
        document["worker"].update(values)
        path.write_text(json.dumps(document))

    return change


def out_of_time(path: Path) -> None:
    quarantine = {"reason": "XID 79", "since": 1e300, "boot_id": "b"}
    path.write_text(json.dumps({"version": 1, "health": {"quarantines": {"GPU-0": quarantine}}}))


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("st/fleet.json", a_pipe),
        ("st/fleet.json", gigabytes),
        ("st/workers/m/0.json", endless),
        ("st/workers/m/0.json", changed(name="x")),
        ("st/workers/m/0.json", changed(pool="unknown")),
        ("st/gpus.json", out_of_time),
        ("rt/runs/m/0/1/pool", a_pipe),
        ("rt/runs/m/0/1/pool", gigabytes),
    ],
)
def test_a_daemon_that_finds_nonsense_takes_over_what_runs(
    daemon: DaemonUnderTest, name: str, spoil: Callable[[Path], None]
) -> None:
    daemon.start(FLEET)
    before = {worker: one["pid"] for worker, one in daemon.all_ready().items()}
    daemon.kill()
    spoil(daemon.root / name)

    daemon.start(daemon.root / "fleet.toml")

    assert {worker: one["pid"] for worker, one in daemon.all_ready().items()} == before
    if name.startswith("st/"):
        assert any(Path(name).name in notice for notice in daemon.call("status")["daemon"]["notices"])


def test_a_run_whose_files_are_spoiled_ends_before_the_next_begins_and_delays_nobody(daemon: DaemonUnderTest) -> None:
    daemon.start(FLEET)
    before = {name: worker["pid"] for name, worker in daemon.all_ready().items()}
    daemon.kill()
    for name in ("spec", "keeper", "started"):
        a_pipe(daemon.root / "rt" / "runs" / "m" / "0" / "1" / name)

    daemon.start(daemon.root / "fleet.toml")
    pid = daemon.all_ready()["m/1"]["pid"]
    daemon.until("m/0", lambda worker: worker["run"] > 1 and worker["ready"], within_s=40)

    assert pid == before["m/1"]
    assert not alive(before["m/0"])


def no_locks() -> None:
    """Let flock(2) of this process and its children say ENOLCK, as some network file systems do (seccomp(2))."""
    flock = {"x86_64": 73, "aarch64": 32}[platform.machine()]
    steps = ((0x20, 0, 0, 0), (0x15, 0, 1, flock), (0x06, 0, 0, 0x00050000 | errno.ENOLCK), (0x06, 0, 0, 0x7FFF0000))
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    libc = ctypes.CDLL(None, use_errno=True)
    whole = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(program)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, whole, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def test_a_place_without_locks_is_named(daemon: DaemonUnderTest) -> None:
    daemon.start(wait=False, before_exec=no_locks)
    assert daemon.process is not None

    assert daemon.process.wait(20) != 0
    assert f"cannot use {daemon.root}/rt/gpuward.lock: cannot be locked (No locks available)" in daemon.log()
