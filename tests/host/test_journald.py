"""What goes to the journal, read at the other end of a datagram socket by a reader of its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuward.host.journald import VALUE_MAX_BYTES, JournalSocket, encode, is_journal


def fields_of(message: bytes) -> dict[str, str]:
    """The fields of a message as the journal reads them."""
    fields = {}
    while message:
        line, _, rest = message.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size + 1 :]
        fields[name.decode()] = value.decode()
        message = rest
    return fields


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
        reader.bind(str(tmp_path / "journal"))
        reader.settimeout(5)
        yield reader


@pytest.fixture
def sender(journal: socket.socket) -> Iterator[JournalSocket]:
    sender = JournalSocket(journal.getsockname())
    yield sender
    sender.close()


def test_fields_arrive_under_upper_case_names(journal, sender) -> None:
    sender.send(encode({"MESSAGE": "worker-failed decode/0", "worker": "decode/0", "gpu": 3, "cause": "hang"}))

    assert fields_of(journal.recv(65536)) == {
        "MESSAGE": "worker-failed decode/0",
        "WORKER": "decode/0",
        "GPU": "3",
        "CAUSE": "hang",
    }


def test_a_value_with_line_breaks_arrives_whole(journal, sender) -> None:
    text = "Traceback\nPRIORITY=0\nValueError: é"

    sender.send(encode({"EXCEPTION": text, "KIND": "stopped"}))

    assert fields_of(journal.recv(65536)) == {"EXCEPTION": text, "KIND": "stopped"}


def test_no_name_begins_with_what_the_journal_reserves(journal, sender) -> None:
    sender.send(encode({"_pid": "1", "2nd-try": "yes", "nothing": None}))

    assert fields_of(journal.recv(65536)) == {"PID": "1", "ND_TRY": "yes"}


def test_a_long_value_is_cut_between_characters_and_says_so(journal, sender) -> None:
    sender.send(encode({"MESSAGE": "x" + "é" * 100_000}))

    value = fields_of(journal.recv(1 << 20))["MESSAGE"]
    assert value.endswith("é ... (cut at 48 KiB)")
    assert VALUE_MAX_BYTES - 2 <= len(value.encode()) <= VALUE_MAX_BYTES


def test_what_a_full_journal_does_not_take_is_counted_and_told_with_the_next_message(journal, sender) -> None:
    message = encode({"KIND": "x", "MESSAGE": "y" * 40_000})
    taken = 0
    while sender.dropped < 3:
        sender.send(message)
        taken += 1
    for _ in range(taken - 3):
        journal.recv(65536)

    sender.send(encode({"KIND": "after"}))

    assert fields_of(journal.recv(65536)) == {"KIND": "after", "DROPPED_BEFORE": "3"}
    assert (sender.dropped, sender.trouble) == (3, "")


def test_a_journal_that_is_gone_costs_messages_and_nothing_else(tmp_path: Path) -> None:
    sender = JournalSocket(str(tmp_path / "nobody"))

    sender.send(b"KIND=x\n")

    assert sender.dropped == 1
    sender.close()


def test_standard_error_is_the_journal_only_where_device_and_inode_agree() -> None:
    with Path(os.devnull).open() as file:
        at = os.fstat(file.fileno())

        assert is_journal(file.fileno(), {"JOURNAL_STREAM": f"{at.st_dev}:{at.st_ino}"})
        assert not is_journal(file.fileno(), {"JOURNAL_STREAM": f"{at.st_dev}:{at.st_ino + 1}"})
        assert not is_journal(file.fileno(), {})
