"""Stories of a daemon whose own log goes nowhere: full, closed, unread, or a terminal that is gone."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import termios
from pathlib import Path

import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

from gpuward.control.client import Unreachable

pytestmark = pytest.mark.e2e

ONE = """
[pool.m]
model = "org/m"
gpus-per-worker = 1
"""
TWO = ONE + "workers = 2\n"


def notices(daemon: DaemonUnderTest) -> list[str]:
    return daemon.call("status")["daemon"]["notices"]


def killed_and_replaced(daemon: DaemonUnderTest) -> None:
    """The daemon still does its work: a worker that is killed is replaced."""
    os.kill(daemon.worker("m/0")["pid"], signal.SIGKILL)
    daemon.until("m/0", lambda worker: worker["ready"] and worker["run"] == 2)


def test_a_full_disk_under_the_log_costs_lines_which_status_counts(daemon: DaemonUnderTest) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    daemon.start(ONE, stderr=full)
    os.close(full)
    daemon.all_ready()

    killed_and_replaced(daemon)

    (lost,) = [one for one in notices(daemon) if "log cannot be written" in one]
    assert "(No space left on device)" in lost
    assert daemon.stop() == 0


def test_a_reader_of_the_log_that_dies_does_not_end_the_daemon(daemon: DaemonUnderTest) -> None:
    read_end, write_end = os.pipe()
    daemon.start(ONE, stderr=write_end)
    os.close(write_end)
    daemon.all_ready()
    os.close(read_end)

    killed_and_replaced(daemon)

    assert any("(Broken pipe)" in one for one in notices(daemon))
    assert daemon.stop() == 0


def test_a_log_that_nobody_reads_delays_nobody_and_tells_its_loss_when_it_is_read(daemon: DaemonUnderTest) -> None:
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    daemon.start(ONE, stderr=write_end)
    os.close(write_end)
    daemon.all_ready()
    os.set_blocking(read_end, False)

    for _ in range(2500):  # each is a line of the log
        daemon.call("reset", {"all": True})
    killed_and_replaced(daemon)

    assert any("its reader does not read" in one for one in notices(daemon))
    text = bytearray()

    def told() -> bool:
        try:
            text.extend(os.read(read_end, 65536))
        except BlockingIOError:
            daemon.call("reset", {"all": True})
        return b'"event": "log-lost"' in text

    eventually(told, within_s=20)
    eventually(lambda: not notices(daemon), within_s=10)
    os.close(read_end)
    assert daemon.stop() == 0


def test_a_terminal_that_is_closed_is_no_order_to_apply_what_the_file_says_by_then(daemon: DaemonUnderTest) -> None:
    ours, its = pty.openpty()

    def own_session() -> None:
        os.setsid()
        fcntl.ioctl(its, termios.TIOCSCTTY, 0)

    daemon.start(TWO, stderr=its, before_exec=own_session)
    os.close(its)
    before = daemon.all_ready()
    revision = daemon.call("status")["fleet"]["revision"]
    daemon.write("fleet.toml", ONE)

    os.close(ours)
    eventually(lambda: "terminal-closed" in {event["kind"] for event in daemon.call("events")["events"]}, within_s=20)

    assert daemon.call("status")["fleet"]["revision"] == revision
    assert {name: worker["pid"] for name, worker in daemon.workers().items()} == {
        name: worker["pid"] for name, worker in before.items()
    }
    assert daemon.stop() == 0


def test_a_daemon_without_standard_streams_keeps_its_files_out_of_their_numbers(daemon: DaemonUnderTest) -> None:
    daemon.start(ONE, before_exec=lambda: os.closerange(0, 3))
    daemon.all_ready()
    assert daemon.process is not None

    opened = {fd: str(Path(f"/proc/{daemon.process.pid}/fd/{fd}").readlink()) for fd in (0, 1, 2)}

    assert opened == dict.fromkeys((0, 1, 2), os.devnull)
    killed_and_replaced(daemon)


def test_a_hang_up_while_the_daemon_starts_or_is_replaced_does_not_end_it(daemon: DaemonUnderTest) -> None:
    daemon.start(ONE, wait=False)
    assert daemon.process is not None
    eventually(lambda: _blocks_hang_ups(daemon.process.pid), within_s=10, every_s=0.001)  # type: ignore[union-attr]
    daemon.process.send_signal(signal.SIGHUP)
    eventually(daemon.answers, within_s=20)
    daemon.all_ready()
    epoch = daemon.call("ping")["epoch"]

    daemon.call("reexec")

    def hung_up() -> bool:
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        try:
            return daemon.answers() and daemon.call("ping")["epoch"] == epoch + 1
        except Unreachable:  # the one that is replaced hung up between the two
            return False

    eventually(hung_up, within_s=30, every_s=0.005)
    assert daemon.stop() == 0


def _blocks_hang_ups(pid: int) -> bool:
    fields = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    return bool(int(fields["SigBlk"], 16) & 1 << (signal.SIGHUP - 1))
