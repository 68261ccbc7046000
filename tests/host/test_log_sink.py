"""The daemon's log on streams that do not take it: nothing raises, nothing waits, what is lost is counted and told."""

from __future__ import annotations

import fcntl
import os
import pty
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuward.host.log_sink import WAITING_MAX_BYTES, LogSink

LINE = "x" * 999 + "\n"


def a_sink(fd: int) -> LogSink:
    return LogSink(fd, lambda lines: f"lost {lines}")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe of one page: its read end, which does not block, and its write end."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read_end, False)
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    yield read_end, write_end
    for fd in (read_end, write_end):
        try:
            os.close(fd)
        except OSError:
            continue


def read_all(fd: int, sink: LogSink) -> str:
    text = b""
    while True:
        sink.flush()
        try:
            text += os.read(fd, 65536)
        except BlockingIOError:
            return text.decode()


def test_a_pipe_that_is_read_gets_every_line_in_order(pipe: tuple[int, int]) -> None:
    sink = a_sink(pipe[1])

    for number in range(50):
        sink.write(f"{number} {LINE}")
    got = read_all(pipe[0], sink)

    assert [line.split()[0] for line in got.splitlines()] == [str(number) for number in range(50)]
    assert (sink.dropped, sink.trouble) == (0, "")


def test_an_unread_pipe_loses_what_is_beyond_its_room_and_says_how_much_when_it_is_read(pipe: tuple[int, int]) -> None:
    sink = a_sink(pipe[1])

    for _ in range(WAITING_MAX_BYTES // len(LINE) + 50):
        sink.write(LINE)
    lost = sink.dropped
    first = read_all(pipe[0], sink)
    sink.write("after\n")

    assert lost > 0
    assert first.count(LINE) == WAITING_MAX_BYTES // len(LINE) + 50 - lost
    assert read_all(pipe[0], sink) == f"lost {lost}\nafter\n"
    assert sink.trouble == ""


def test_the_pipe_of_the_shell_keeps_its_flags(pipe: tuple[int, int]) -> None:
    a_sink(pipe[1]).write(LINE)

    assert os.get_blocking(pipe[1])


def test_a_reader_that_is_gone_costs_lines_only(pipe: tuple[int, int]) -> None:
    sink = a_sink(pipe[1])
    os.close(pipe[0])

    sink.write("a\n")
    sink.write("b\n")

    assert (sink.dropped, sink.trouble) == (2, "Broken pipe")


def test_a_full_disk_costs_lines_and_all_of_them_are_told_once_there_is_room() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    sink = a_sink(full)

    for _ in range(3):
        sink.write(LINE)
    read_end, write_end = os.pipe()
    os.dup2(write_end, sink._fd)
    sink.write("room\n")

    assert sink.dropped == 3
    assert os.read(read_end, 4096) == b"lost 3\nroom\n"
    for fd in (full, read_end, write_end):
        os.close(fd)


def test_a_terminal_that_is_closed_costs_lines_only() -> None:
    ours, its = pty.openpty()
    sink = a_sink(its)
    os.close(ours)

    sink.write("a\n")

    assert (sink.dropped, sink.trouble) == (1, "Input/output error")
    os.close(its)


def test_what_cannot_be_encoded_is_written_escaped(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        a_sink(file.fileno()).write("caf\udce9\n")

    assert (tmp_path / "log").read_text() == "caf\\udce9\n"
