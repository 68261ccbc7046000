"""The control socket of a real daemon: any request is answered, whoever may only read changes nothing."""

from __future__ import annotations

import grp
import json
import os
import pwd
import random
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from tests.e2e.cases.scripts import SLEEPS, pools, python
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

from gpuward.config.host import DEFAULT_GROUP
from gpuward.control.client import Client, Refused, Unreachable
from gpuward.control.protocol import EXIT_BY_ERROR, events_path

pytestmark = pytest.mark.e2e

FLEET = pools(w={"command": python(SLEEPS)})
VALUES: tuple[Any, ...] = (
    None,
    "",
    "w",
    "w/0",
    "w/00",
    "../../../etc/passwd",
    "a\0b",
    "\u202e\x1b[31m",
    "x" * 5000,
    -1,
    0,
    1,
    2**31,
    2**53,
    1.5,
    1e308,
    True,
    [],
    ["w/0", "w/0"],
    {},
    "/",
    "[pool.x]",
    "- a\n- b",
)
KEYS = ("targets", "all", "worker", "run", "lines", "offset", "max_bytes", "since", "limit", "id", "seen", "pool")
KEYS = (*KEYS, "workers", "text", "name", "directory", "expected_revision")
OPS = ("ping", "status", "plan", "diff", "logs", "events", "operation", "why", "start", "stop", "restart", "scale")
SHAPES: dict[str, tuple[str, ...]] = {
    "plan": ("text", "name", "directory"),
    "diff": ("text", "name", "directory"),
    "logs": ("worker", "run", "lines", "offset", "max_bytes"),
    "events": ("since", "limit", "worker"),
    "operation": ("id", "seen"),
    "why": ("worker",),
    "start": ("targets", "all"),
    "stop": ("targets", "all"),
    "restart": ("targets", "all"),
    "scale": ("pool", "workers"),
}


@pytest.mark.parametrize("seed", range(3))
def test_any_arguments_are_answered_and_the_daemon_lives_on(daemon: DaemonUnderTest, seed: int) -> None:
    daemon.start(FLEET)
    pid = daemon.call("ping")["pid"]
    chance = random.Random(seed)
    codes = set()

    for _ in range(400):
        op = chance.choice(OPS)
        shape = SHAPES.get(op, ()) if chance.random() < 0.9 else KEYS
        args = {key: chance.choice(VALUES) for key in shape if chance.random() < 0.9}
        try:
            daemon.call(op, args)
        except Refused as refused:
            codes.add(refused.code)

    assert codes <= set(EXIT_BY_ERROR)
    assert daemon.call("ping")["pid"] == pid


def test_status_counts_what_the_socket_could_not_serve(daemon: DaemonUnderTest) -> None:
    daemon.start(FLEET)
    before = daemon.call("status")["daemon"]["control"]

    with pytest.raises(Refused, match="there is no operation 'dance'"):
        daemon.call("dance")
    after = daemon.call("status")["daemon"]["control"]

    assert after["bad_requests"] == before["bad_requests"] + 1
    assert after["requests"] == before["requests"] + 2


def test_ten_thousand_long_frames_do_not_stay_in_the_daemons_memory(daemon: DaemonUnderTest) -> None:
    daemon.start(FLEET)
    daemon.all_ready()
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)
    before_bytes = process.memory_info().rss
    frame = b"x" * 100_000

    with zmq.Context() as context, context.socket(zmq.DEALER) as flooding:
        flooding.linger = 0
        flooding.connect(f"ipc://{daemon.socket}")
        for _ in range(10_000):
            flooding.send(frame)
            while flooding.poll(0):
                flooding.recv()
        eventually(lambda: daemon.call("status")["daemon"]["control"]["bad_requests"] >= 10_000, within_s=20)

    grown_bytes = process.memory_info().rss - before_bytes
    assert grown_bytes < 100 << 20, f"{grown_bytes >> 20} MiB"
    assert daemon.worker("w/0")["restarts"] == 0


@pytest.mark.parametrize("frame_bytes", [3 << 20, 100_000], ids=["long frames", "many frames"])
@pytest.mark.parametrize("kind", [zmq.DEALER, zmq.XSUB], ids=["requests", "events"])
def test_a_message_without_an_end_is_hung_up_on_before_it_fills_the_memory(
    daemon: DaemonUnderTest, frame_bytes: int, kind: int
) -> None:
    daemon.start(FLEET)
    daemon.all_ready()
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)
    before_bytes = process.memory_info().rss
    frame = b"x" * frame_bytes
    path = daemon.socket if kind == zmq.DEALER else events_path(daemon.socket)

    with zmq.Context() as context, context.socket(kind) as endless:
        endless.linger = 0
        endless.connect(f"ipc://{path}")
        for _ in range((2 << 30) // frame_bytes):
            endless.send(frame, zmq.SNDMORE, copy=False)
        endless.send(frame, copy=False)  # the sender's libzmq sends nothing before it has all
        eventually(lambda: daemon.call("status")["daemon"]["control"]["endless"], within_s=20)

    eventually(lambda: process.memory_info().rss - before_bytes < 64 << 20, within_s=10)
    assert daemon.worker("w/0")["restarts"] == 0


def test_more_connections_than_there_are_descriptors_are_hung_up_on_and_others_are_served(
    daemon: DaemonUnderTest,
) -> None:
    daemon.start(FLEET, before_exec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024)))
    pid = daemon.all_ready()["w/0"]["pid"]
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)
    crowd, used = [Client(daemon.socket, timeout_s=10) for _ in range(1500)], []
    for number, one in enumerate(crowd):
        with suppress(Unreachable):  # the newest are those that are hung up on
            one.call("ping")  # and stays
        used += [process.num_fds()] if number % 100 == 0 else []
    with Client(daemon.socket, timeout_s=10) as polite:
        answered = 0
        for _ in range(60):  # it may be hung up on as well, and is served when it comes again
            with suppress(Unreachable):
                answered += polite.call("ping")["pong"]
    crowded = daemon.call("status")["daemon"]["control"]["crowded"]
    for one in crowd:
        one.close()

    assert answered >= 20
    assert crowded >= 500
    assert max(used) < 1024
    assert daemon.worker("w/0")["pid"] == pid


def test_a_limit_of_files_that_is_too_low_is_said_before_anything_is_started(daemon: DaemonUnderTest) -> None:
    daemon.start(FLEET, wait=False, before_exec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)))
    assert daemon.process is not None

    assert daemon.process.wait(20) == 78
    assert "cannot start: at most 256 files may be open here, gpuward needs 1024" in daemon.log()


def test_who_is_neither_root_nor_in_the_group_may_look_and_nothing_else(daemon: DaemonUnderTest) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    daemon.start(FLEET)
    daemon.all_ready()
    daemon.root.chmod(0o755)
    Path(daemon.socket).chmod(0o666)  # else such a user does not even reach it

    told = _as_user(54_321, daemon.socket)

    assert told["status"] == ["w/0"]
    assert told["stop"][0] == told["apply"][0] == told["scale"][0] == told["reexec"][0] == "not-permitted"
    assert told["stop"][1] == "not permitted: stop needs root or a member of group gpuctl; you are user 54321"
    assert (daemon.worker("w/0")["phase"], daemon.worker("w/0")["run"]) == ("ready", 1)


def test_an_operator_may_restart_and_not_bring_in_a_program(daemon: DaemonUnderTest) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    member = pwd.getpwnam("nobody")
    group = grp.getgrgid(member.pw_gid).gr_name
    daemon.start(FLEET, config=f'[control]\ngroup = "{group}"\n')
    daemon.all_ready()
    daemon.root.chmod(0o755)

    told = _as_user(member.pw_uid, daemon.socket, member.pw_gid)

    assert {op: told[op][0] for op in ("apply", "roll", "reload", "reexec")} == dict.fromkeys(
        ("apply", "roll", "reload", "reexec"), "not-permitted"
    )
    assert told["apply"][1] == "not permitted: apply needs root; you are nobody"
    assert told["roll"][1] == "not permitted: roll with a file needs root; you are nobody"
    assert (told["stop"][0], told["restart"][0]) == ("done", "done")


def test_readers_are_let_in_where_the_host_says_so_and_a_missing_group_is_told(daemon: DaemonUnderTest) -> None:
    daemon.start(FLEET, config='[control]\ngroup = "no-such-group"\nothers = "read"\n')

    mode = Path(daemon.socket).stat().st_mode & 0o777
    (notice,) = daemon.call("status")["daemon"]["notices"]

    assert mode == 0o666
    assert notice.startswith("there is no group no-such-group: only root and the daemon's user can use ")


@pytest.mark.skipif(DEFAULT_GROUP in {group.gr_name for group in grp.getgrall()}, reason="this host has the group")
def test_a_missing_default_group_is_told_by_a_service_and_not_by_what_somebody_runs(daemon: DaemonUnderTest) -> None:
    daemon.start(FLEET)
    by_hand = daemon.call("status")["daemon"]["notices"]
    daemon.stop()

    daemon.environment["NOTIFY_SOCKET"] = str(daemon.root / "notify.sock")
    daemon.start(FLEET)
    (as_a_service,) = daemon.call("status")["daemon"]["notices"]

    assert by_hand == []
    assert as_a_service.startswith("there is no group gpuctl: ")


def _as_user(uid: int, socket: str, gid: int | None = None) -> dict[str, Any]:
    """Ask as another user, from a child process."""
    ours, its = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(gid if gid is not None else uid)
            os.setuid(uid)
            os.write(its, json.dumps(_told(socket)).encode())
        finally:
            os._exit(0)
    os.close(its)
    with os.fdopen(ours, "rb") as answer:
        told: dict[str, Any] = json.loads(answer.read() or b"{}")
    os.waitpid(child, 0)
    return told


def _told(socket: str) -> dict[str, Any]:
    told: dict[str, Any] = {}
    with Client(socket, timeout_s=5) as client:
        told["status"] = [worker["name"] for worker in client.call("status")["workers"]]
        for op, args in (
            ("stop", {"all": True}),
            ("restart", {"targets": ["w/0"]}),
            ("scale", {"pool": "w", "workers": 0}),
            ("apply", {"text": "", "name": "f.toml", "directory": "/"}),
            ("roll", {"pool": "w", "file": {"text": "", "name": "f.toml", "directory": "/"}}),
            ("reload", {}),
            ("reexec", {}),
        ):
            try:
                told[op] = ["done", str(client.call(op, args))]
            except Refused as refused:
                told[op] = [refused.code, refused.message]
    return told
