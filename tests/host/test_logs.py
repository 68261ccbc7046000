"""Reading captured output, whole and while it is written and moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from gpuward.host import logs
from gpuward.host.log_reader import LogWatch
from gpuward.host.logs import Chunk


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "7.log"


Watching = Callable[[Path, str], LogWatch]


@pytest.fixture
def watching() -> Iterator[Watching]:
    """Makes watches, and closes them."""
    with ExitStack() as watches:
        yield lambda path, pattern: watches.enter_context(closing(LogWatch(path, pattern)))


def moved(log: Path) -> Path:
    return Path(f"{log}.1")


def write(log: Path, text: str | bytes) -> None:
    with log.open("ab") as file:
        file.write(text.encode() if isinstance(text, str) else text)


def rotate(log: Path) -> None:
    """What the keeper does with a full file."""
    log.rename(moved(log))
    log.touch()


def test_no_capture_is_an_empty_one(log: Path, watching: Watching) -> None:
    assert logs.size(log) == 0
    assert logs.tail(log, 10, 100) == Chunk("", 0, 0, 0)
    assert logs.read_from(log, 50, 100) == Chunk("", 0, 0, 0)
    assert not watching(log, "x").found()


@pytest.mark.parametrize(
    ("written", "lines", "text"),
    [
        ("a\nb\nc\n", 2, "b\nc\n"),
        ("a\nb\nc", 2, "b\nc"),
        ("a\nb\nc\n", 3, "a\nb\nc\n"),
        ("a\nb\nc\n", 9, "a\nb\nc\n"),
        ("a\nb\nc\n", 0, ""),
        ("a\n\n\n", 2, "\n\n"),
        ("", 2, ""),
    ],
)
def test_a_tail_is_the_last_lines(log: Path, written: str, lines: int, text: str) -> None:
    write(log, written)

    assert logs.tail(log, lines, 1000) == Chunk(text, len(written) - len(text), len(written), len(written))


def test_a_tail_reaches_into_the_file_that_was_moved(log: Path) -> None:
    write(log, "a\nb\n")
    rotate(log)
    write(log, "c\n")

    assert logs.tail(log, 2, 1000) == Chunk("b\nc\n", 2, 6, 6)


def test_a_tail_that_must_be_cut_begins_with_a_whole_line(log: Path) -> None:
    write(log, "first line\nsecond\nthird\n")

    assert logs.tail(log, 10, 16).text == "second\nthird\n"


def test_a_single_line_longer_than_the_limit_is_cut(log: Path) -> None:
    write(log, "x" * 50)

    assert logs.tail(log, 10, 16) == Chunk("x" * 16, 34, 50, 50)


def test_reading_on_from_a_tail_misses_and_repeats_nothing(log: Path) -> None:
    write(log, "a\nb")
    first = logs.tail(log, 1, 1000)
    write(log, "c\nd\n")

    second = logs.read_from(log, first.next_offset, 1000)

    assert first.text + second.text == "bc\nd\n"
    assert logs.read_from(log, second.next_offset, 1000).text == ""


def test_a_follower_keeps_its_offsets_over_the_first_move(log: Path) -> None:
    write(log, "one\n")
    before = logs.read_from(log, 0, 1000)
    write(log, "two\n")
    rotate(log)
    write(log, "three\n")

    assert logs.read_from(log, before.next_offset, 1000) == Chunk("two\nthree\n", 4, 14, 14)


def test_a_follower_goes_on_where_it_was_over_later_moves(log: Path) -> None:
    write(log, "file0\n")
    rotate(log)
    write(log, "fil")
    before = logs.read_from(log, 0, 1000)
    write(log, "e1\n")
    rotate(log)
    write(log, "x\n")

    after = logs.read_from(log, before.next_offset, 1000)

    assert (after.text, after.offset) == ("e1\nx\n", 3)


def test_what_lies_ahead_of_the_stream_is_its_end(log: Path) -> None:
    write(log, "abc\n")

    assert logs.read_from(log, 10_000, 100) == Chunk("", 4, 4, 4)
    assert logs.read_from(log, -5, 100).text == "abc\n"


def test_chunks_end_between_characters(log: Path) -> None:
    write(log, "aé€😀b")
    texts, offset = [], 0
    while (chunk := logs.read_from(log, offset, 4)).text:
        texts.append(chunk.text)
        offset = chunk.next_offset

    assert "".join(texts) == "aé€😀b"
    assert offset == logs.size(log)


def test_a_character_that_is_still_being_written_waits(log: Path) -> None:
    whole = "héé".encode()
    write(log, whole[:-1])

    first = logs.read_from(log, 0, 100)
    write(log, whole[-1:])

    assert first.text == "hé"
    assert logs.read_from(log, first.next_offset, 100).text == "é"


def test_bytes_that_are_no_text_are_replaced_and_never_stop_a_reader(log: Path) -> None:
    write(log, b"a\xff\xc3")

    first = logs.read_from(log, 0, 100)
    second = logs.read_from(log, first.next_offset, 100)

    assert first.text + second.text == "a\ufffd\ufffd"
    assert second.next_offset == second.size


def test_a_watch_sees_what_is_written_after_it_looked(log: Path, watching: Watching) -> None:
    watch = watching(log, r"serving on port \d+")
    write(log, "loading\nserving on ")

    before = watch.found()
    write(log, "port 8000\n")

    assert not before
    assert watch.found()


def test_a_watch_sees_a_line_without_end(log: Path, watching: Watching) -> None:
    write(log, "ready> ")

    assert watching(log, "^ready> $").found()


def test_a_watch_looks_at_a_line_once(log: Path, watching: Watching) -> None:
    watch = watching(log, "ready")
    write(log, "ready\n")

    assert watch.found()
    assert not watch.found()


def test_a_watch_follows_over_moves(log: Path, watching: Watching) -> None:
    watch = watching(log, "ready")
    for _ in range(3):
        write(log, "noise noise\n")
        assert not watch.found()
        rotate(log)
    write(log, "ready\n")

    assert watch.found()


def test_a_watch_gets_through_a_flood(log: Path, watching: Watching) -> None:
    watch = watching(log, "ready")
    write(log, "noise\n" * 500_000 + "ready\n")

    assert any(watch.found() for _ in range(4))


def test_reading_leaves_no_descriptor_open(log: Path) -> None:
    write(log, "a\n")
    rotate(log)
    before = len(list(Path("/proc/self/fd").iterdir()))

    logs.tail(log, 1, 10)

    assert len(list(Path("/proc/self/fd").iterdir())) == before
