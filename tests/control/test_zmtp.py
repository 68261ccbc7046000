from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from gpuward.control.zmtp import Connection, NotZmtp

Bind = Callable[..., "zmq.Socket[bytes]"]


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Bind]:
    """Make real libzmq sockets, bound to the path ``s``."""
    context = zmq.Context()
    made: list[zmq.Socket[bytes]] = []

    def bind(kind: int, **options: int) -> zmq.Socket[bytes]:
        made.append(context.socket(kind))
        made[-1].linger, made[-1].rcvtimeo, made[-1].sndtimeo = 0, 5000, 5000
        for name, value in options.items():
            made[-1].setsockopt(getattr(zmq, name), value)
        made[-1].bind(f"ipc://{tmp_path / 's'}")
        return made[-1]

    yield bind
    for each in made:
        each.close()
    context.term()


class Listener:
    """A Unix socket that answers its first connection with fixed bytes, then hangs up once the peer has."""

    def __init__(self, path: Path, says: bytes) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        self._socket.listen()
        self._says = says
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        peer, _ = self._socket.accept()
        with peer:
            peer.sendall(self._says)
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(65536):
                pass

    def close(self) -> None:
        self._thread.join()
        self._socket.close()


@pytest.mark.parametrize("size", [0, 1, 255, 256, 70_000, 3_000_000])
def test_a_message_of_any_size_goes_both_ways(bound: Bind, tmp_path: Path, size: int) -> None:
    router = bound(zmq.ROUTER)
    connection = Connection(str(tmp_path / "s"), "DEALER", timeout_s=5)

    sender = threading.Thread(target=lambda: connection.send(b"", b"x" * size, timeout_s=5))
    sender.start()
    peer, *frames = router.recv_multipart()
    sender.join()
    router.send_multipart([peer, b"", b"y" * size])
    answer = connection.receive(timeout_s=5)
    connection.close()

    assert frames == [b"", b"x" * size]
    assert answer == [b"", b"y" * size]


def test_heartbeats_are_answered_so_that_the_peer_does_not_hang_up(bound: Bind, tmp_path: Path) -> None:
    router = bound(zmq.ROUTER, HEARTBEAT_IVL=20, HEARTBEAT_TIMEOUT=60)
    connection = Connection(str(tmp_path / "s"), "DEALER", timeout_s=5)
    connection.send(b"hello", timeout_s=5)
    peer, _ = router.recv_multipart()

    with pytest.raises(TimeoutError):
        connection.receive(timeout_s=0.5)
    router.send_multipart([peer, b"still there"])

    assert connection.receive(timeout_s=5) == [b"still there"]
    connection.close()


def test_a_ping_is_answered_with_its_own_context(tmp_path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(tmp_path / "s"))
    listening.listen()
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
    said: list[bytes] = []

    def serve() -> None:
        peer, _ = listening.accept()
        with peer:
            peer.sendall(greeting + b"\x04\x06\x05READY" + b"\x04\x0a\x04PING\x00\x0actx" + b"\x00\x02ok")
            while received := peer.recv(65536):
                said.append(received)

    thread = threading.Thread(target=serve)
    thread.start()
    connection = Connection(str(tmp_path / "s"), "DEALER", timeout_s=5)

    message = connection.receive(timeout_s=5)
    connection.close()
    thread.join()
    listening.close()

    assert message == [b"ok"]
    assert b"".join(said).endswith(b"\x04\x08\x04PONGctx")


def test_a_subscriber_gets_its_topic_and_nothing_else(bound: Bind, tmp_path: Path) -> None:
    publisher = bound(zmq.XPUB)
    connection = Connection(str(tmp_path / "s"), "SUB", timeout_s=5)

    connection.subscribe(b"event", timeout_s=5)
    subscription = publisher.recv_multipart()
    publisher.send_multipart([b"noise", b"1"])
    publisher.send_multipart([b"event", b"2"])
    publisher.send_multipart([b"event", b"3"])
    messages = [connection.receive(timeout_s=5), connection.receive(timeout_s=5)]
    connection.close()

    assert subscription == [b"\x01event"]
    assert messages == [[b"event", b"2"], [b"event", b"3"]]


def test_a_timeout_in_the_middle_of_a_message_loses_nothing(tmp_path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(tmp_path / "s"))
    listening.listen()
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
    go_on = threading.Event()

    def serve() -> None:
        peer, _ = listening.accept()
        with peer:
            peer.sendall(greeting + b"\x04\x06\x05READY" + b"\x01\x03one" + b"\x00\x03tw")
            go_on.wait(10)
            peer.sendall(b"o")
            peer.recv(65536)

    thread = threading.Thread(target=serve)
    thread.start()
    connection = Connection(str(tmp_path / "s"), "DEALER", timeout_s=5)

    with pytest.raises(TimeoutError):
        connection.receive(timeout_s=0.05)
    go_on.set()
    message = connection.receive(timeout_s=5)
    connection.close()
    thread.join()
    listening.close()

    assert message == [b"one", b"two"]


@pytest.mark.parametrize(
    "says",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n".ljust(80),
        b"\xff" + bytes(8) + b"\x7f\x01\x00".ljust(70, b"\0"),
        b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32),
        b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32) + b"\x02" + b"\xff" * 8,
        b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32) + b"\x04\x07\x05ERROR\x00",
    ],
    ids=["http", "zmtp 1", "curve", "a frame of 2**64 bytes", "an error instead of ready"],
)
def test_whatever_else_listens_is_told_apart(tmp_path: Path, says: bytes) -> None:
    listener = Listener(tmp_path / "s", says)

    with pytest.raises(NotZmtp):
        Connection(str(tmp_path / "s"), "DEALER", timeout_s=5)

    listener.close()


def test_a_peer_that_hangs_up_is_a_connection_error(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "s", b"\xff")

    with pytest.raises(ConnectionError):
        Connection(str(tmp_path / "s"), "DEALER", timeout_s=5)

    listener.close()
