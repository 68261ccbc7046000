"""Who sends without end is told from who does not by what the kernel has of theirs, and ended."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.waiting import eventually

from gpuward.control.intake import LOOKS_WITHOUT_SUSPECT, STILL_COMING_BYTES, Intake, connections_to, unread_bytes


class Line:
    """A listening socket, and connections to it whose accepted ends this process has."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = str(path)
        self._stack = stack
        self._listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        self._listening.bind(self.path)
        self._listening.listen()

    def connect(self, send: bytes = b"") -> tuple[socket.socket, socket.socket]:
        """Return a client that has sent this, and its accepted end, which has read nothing."""
        client = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(self.path)
        accepted = self._stack.enter_context(self._listening.accept()[0])
        client.sendall(send)
        eventually(lambda: unread_bytes(accepted.fileno()) == len(send), within_s=5)
        return client, accepted


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with ExitStack() as stack:
        yield Line(tmp_path / "s", stack)


def an_intake(line: Line, ended: list[int], *, over: bool) -> Intake:
    intake = Intake((line.path,), 1 << 20, ended.append)
    intake.max_bytes = -(1 << 62) if over else 1 << 62
    return intake


def is_ended(client: socket.socket) -> bool:
    client.settimeout(0.05)
    try:
        return client.recv(1) == b""
    except TimeoutError:
        return False


def test_only_the_accepted_ends_of_the_socket_are_connections_to_it(line: Line, tmp_path: Path) -> None:
    with ExitStack() as stack:
        other = Line(tmp_path / "other", stack)
        other.connect()
        _, first = line.connect()
        _, second = line.connect()

        found = sorted(connections_to(frozenset({line.path})))

    assert found == sorted([first.fileno(), second.fileno()])


def test_a_connection_from_which_bytes_still_come_is_ended_and_the_quiet_ones_are_left_alone(line: Line) -> None:
    ended: list[int] = []
    loud, _ = line.connect(b"x" * STILL_COMING_BYTES)
    asking, _ = line.connect(b"x" * (STILL_COMING_BYTES - 1))
    quiet, _ = line.connect()

    an_intake(line, ended, over=True).look()

    assert [is_ended(one) for one in (loud, asking, quiet)] == [True, False, False]
    assert ended == [1]


def test_a_sender_too_slow_to_be_caught_is_ended_with_all_others(line: Line) -> None:
    ended: list[int] = []
    clients = [line.connect()[0] for _ in range(2)]
    intake = an_intake(line, ended, over=True)

    for _ in range(LOOKS_WITHOUT_SUSPECT):
        intake.look()
    before = [is_ended(client) for client in clients]
    intake.look()

    assert (before, [is_ended(client) for client in clients]) == ([False, False], [True, True])
    assert ended == [2]


def test_as_long_as_there_is_room_nobody_is_ended(line: Line) -> None:
    ended: list[int] = []
    loud, _ = line.connect(b"x" * 100_000)
    intake = an_intake(line, ended, over=False)

    for _ in range(2 * LOOKS_WITHOUT_SUSPECT):
        intake.look()

    assert (is_ended(loud), ended) == (False, [])


def test_the_room_is_for_several_of_the_longest_requests_and_never_less_than_128_mib() -> None:
    small, large = (Intake((), size, lambda _: None).max_bytes for size in (1 << 20, 64 << 20))

    assert (small, large) == (128 << 20, 512 << 20)
