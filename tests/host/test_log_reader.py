"""Reading the output of a run once, while it is written, moved aside and overwritten."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuward.host.keeper import Log
from gpuward.host.log_reader import LogReader
from gpuward.host.logs import tail


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "7.log"


@pytest.fixture
def reader(log: Path) -> Iterator[LogReader]:
    reader = LogReader(log)
    yield reader
    reader.close()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def write(log: Path, text: str | bytes) -> None:
    with log.open("ab") as file:
        file.write(text.encode() if isinstance(text, str) else text)


def rotate(log: Path) -> None:
    """What the keeper does with a full file."""
    log.rename(Path(f"{log}.1"))
    log.touch()


def whole(reader: LogReader) -> list[str]:
    """Everything to the end, as of a run that is over."""
    lines = list(reader.lines())
    last = reader.last_line()
    return [*lines, last] if last else lines


def test_no_capture_has_no_lines(log: Path, reader: LogReader) -> None:
    assert whole(reader) == []
    assert reader.unread_bytes() == 0
    write(log, "a\n")
    assert whole(reader) == ["a"]


def test_bytes_that_are_no_text_are_replaced(log: Path, reader: LogReader) -> None:
    write(log, b"a\xff\xc3")

    assert whole(reader) == ["a\ufffd\ufffd"]


def test_every_line_of_both_files_is_given_once(log: Path, reader: LogReader) -> None:
    numbers = [f"line {number} {'.' * (number % 97)}" for number in range(20_000)]
    write(log, "\n".join(numbers[:11_000])[:-5])
    rotate(log)
    write(log, "\n".join(numbers)[len("\n".join(numbers[:11_000])) - 5 :])

    assert whole(reader) == numbers


def test_a_progress_bar_is_many_lines(log: Path, reader: LogReader) -> None:
    write(log, "load:  1%\rload: 99%\rValueError: x\n")

    assert whole(reader) == ["load:  1%", "\rload: 99%", "\rValueError: x"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_carriage_returns_are_marked_wherever_a_read_ends(
    log: Path, reader: LogReader, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("gpuward.host.log_reader.BLOCK_BYTES", size)
    write(log, "a\r\n\rb\rc\nd\r\re\n\r\nf\r")

    assert whole(reader) == ["a", "", "\rb", "\rc", "d", "\r", "\re", "", "f", "\r"]


def test_an_endless_line_is_cut(log: Path, reader: LogReader) -> None:
    write(log, "x" * 3_000_000 + "\nnext\n" + "y" * 3_000_000)

    assert [len(line) for line in whole(reader)] == [4096, 4, 4096]


def test_a_line_is_given_when_it_is_finished(log: Path, reader: LogReader) -> None:
    write(log, "one\ntw")
    first = list(reader.lines())
    write(log, "o\n")

    assert (first, list(reader.lines())) == (["one"], ["two"])


@pytest.mark.parametrize("every", [1, 7, 40])
def test_a_reader_that_looks_now_and_then_misses_nothing_of_what_a_keeper_writes(
    log: Path, reader: LogReader, every: int
) -> None:
    keeper = Log(str(log), 1000, str(log.parent))
    lines = [f"line {number}" for number in range(1, 2001)]
    read: list[str] = []

    for number, line in enumerate(lines):
        keeper.write(f"{line}\n".encode())
        if number % every == 0:
            read += reader.lines()

    assert read + whole(reader) == lines
    os.close(keeper.fd)


def test_a_file_that_is_overwritten_twice_is_read_to_its_end_and_what_is_kept_follows(
    log: Path, reader: LogReader
) -> None:
    write(log, "one\n")
    list(reader.lines())
    write(log, "two\n")
    for text in ("lost\n", "three\n", "four\n"):
        rotate(log)
        write(log, text)

    assert list(reader.lines()) == ["two", "three", "four"]


def test_what_is_unread_is_counted_over_a_move_and_read_in_parts(log: Path, reader: LogReader) -> None:
    write(log, "x" * 999 + "\n")
    list(reader.lines())
    write(log, "y" * 499 + "\n")
    rotate(log)
    write(log, "z" * 99 + "\n")

    before = reader.unread_bytes()
    first = [line[0] for line in reader.lines(max_bytes=1)]

    assert (before, reader.unread_bytes(), first) == (600, 100, ["y"])
    assert [line[0] for line in reader.lines()] == ["z"]


def test_a_closed_reader_holds_no_descriptor(log: Path, reader: LogReader) -> None:
    write(log, "a\n")
    before = open_descriptors()
    list(reader.lines())
    open_while = open_descriptors()

    reader.close()

    assert (open_while - before, open_descriptors() - before) == (1, 0)


def test_a_pipe_in_the_place_of_the_file_is_nothing_to_read_and_nothing_to_wait_for(
    reader: LogReader, log: Path
) -> None:
    os.mkfifo(log)

    assert list(reader.lines()) == []
    assert tail(log, 10, 1000).text == ""
