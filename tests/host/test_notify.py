"""What systemd hears, at the other end of a datagram socket; and that an idle daemon does not starve its watchdog."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.daemon import DaemonUnderTest

from gpuward.host.notify import Notify


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
        reader.bind(str(tmp_path / "n"))
        reader.settimeout(10)
        yield reader


def heard(systemd: socket.socket) -> list[str]:
    """Everything that has arrived."""
    systemd.setblocking(False)
    messages = []
    try:
        while True:
            messages.append(systemd.recv(4096).decode())
    except BlockingIOError:
        return messages


def notify(systemd: socket.socket, **more: str) -> Notify:
    return Notify({"NOTIFY_SOCKET": systemd.getsockname(), **more})


def test_a_status_is_told_once_until_it_changes(systemd) -> None:
    told = notify(systemd)

    for line in ("1 of 2", "1 of 2", "2 of 2"):
        told.status(line)

    assert heard(systemd) == ["STATUS=1 of 2", "STATUS=2 of 2"]


def test_the_watchdog_is_fed_by_turns_and_not_by_each_of_them(systemd) -> None:
    told = notify(systemd, WATCHDOG_USEC="30000000")

    for now_s in (0.0, 0.1, 5.9, 6.1, 12.0, 13.0):
        told.turned(now_s)

    assert heard(systemd) == ["WATCHDOG=1"] * 3  # at 0, 6.1 and 13


def test_the_loop_turns_four_times_within_the_watchdogs_time_and_never_less_often_than_without() -> None:
    assert Notify({"WATCHDOG_USEC": "2000000"}).tick_s(5.0) == 0.5
    assert Notify({"WATCHDOG_USEC": "30000000"}).tick_s(5.0) == 5.0
    assert Notify({}).tick_s(5.0) == 5.0


def test_a_watchdog_that_was_meant_for_another_process_is_none_of_ours(systemd) -> None:
    told = notify(systemd, WATCHDOG_USEC="1000000", WATCHDOG_PID=str(os.getppid()))

    told.turned(100.0)

    assert heard(systemd) == []


def test_a_stop_asks_for_the_time_that_it_needs(systemd) -> None:
    notify(systemd).stopping(90.5)

    assert heard(systemd) == ["STOPPING=1\nEXTEND_TIMEOUT_USEC=90500000"]


def test_a_name_that_begins_with_an_at_sign_is_abstract() -> None:
    name = f"gpuward-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
        reader.bind(f"\0{name}")

        Notify({"NOTIFY_SOCKET": f"@{name}"}).ready("0 of 0")

        assert heard(reader) == ["READY=1\nSTATUS=0 of 0"]


def test_without_systemd_and_with_one_that_is_gone_nothing_happens(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}):
        told = Notify(environment)

        told.ready("x")
        told.turned(1.0)
        told.stopping(1.0)


@pytest.mark.e2e
def test_an_idle_daemon_with_a_driver_that_is_silent_feeds_its_watchdog_in_time(systemd) -> None:
    watchdog_s = 2.0
    daemon = DaemonUnderTest()
    daemon.environment |= {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": str(int(watchdog_s * 1e6))}

    try:
        daemon.start(config="[inventory]\nsample-interval-s = 60.0", wait=False)
        fed_s = []
        while len(fed_s) < 4:
            if systemd.recv(4096) == b"WATCHDOG=1":
                fed_s.append(time.monotonic())
    finally:
        daemon.close()

    assert max(later - earlier for earlier, later in itertools.pairwise(fed_s)) < watchdog_s
