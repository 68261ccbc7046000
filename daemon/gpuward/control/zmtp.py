"""One ZMTP 3.1 connection over a Unix socket: NULL mechanism, DEALER or SUB, blocking. As much as gpuctl needs.

Standard library only, because `import zmq` costs more than the rest of gpuctl's start (21 of 41 ms CPU, Python 3.11,
pyzmq 27). Never listens, never reconnects. Source of the wire format: rfc.zeromq.org/spec/37 (ZMTP 3.1).
"""

from __future__ import annotations

import socket
import time

GREETING_BYTES = 64
MESSAGE_MAX_BYTES = 64 * 1024 * 1024
"""A longer frame is taken for garbage; the daemon's largest answer is a log chunk of a few MiB."""

QUEUE_FULL_AGAIN_S = 0.02
"""Pause between two tries to connect to a socket whose queue is full."""

_MORE = 0x01
_LONG = 0x02
_COMMAND = 0x04
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
_SHORT_MAX_BYTES = 255
_PING_HEADER_BYTES = len(b"\x04PING") + 2  # the name and a 16-bit time to live; the context follows


class NotZmtp(Exception):
    """What answers does not speak ZMTP 3 with the NULL mechanism."""


class Connection:
    """A connected peer. After any error but TimeoutError it is of no use any more."""

    def __init__(self, path: str, socket_type: str, *, timeout_s: float) -> None:
        """Connect to ``path`` and shake hands as ``socket_type`` (DEALER or SUB).

        Raises OSError as connect(2) does, TimeoutError, ConnectionError where the peer hangs up, NotZmtp.
        """
        self._buffer = bytearray()
        self._parts: list[bytes] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._shake_hands(path, socket_type, time.monotonic() + timeout_s)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Hang up. May be called twice."""
        self._socket.close()

    def send(self, *frames: bytes, timeout_s: float) -> None:
        """Send one message; an interrupted send leaves the connection unusable."""
        wire = [_frame(frame, _MORE) for frame in frames[:-1]]
        self._send(b"".join(wire) + _frame(frames[-1], 0), time.monotonic() + timeout_s)

    def subscribe(self, topic: bytes, *, timeout_s: float) -> None:
        """Ask for messages whose first frame begins with ``topic`` (SUB only)."""
        self._send(_frame(_command(b"SUBSCRIBE", topic), _COMMAND), time.monotonic() + timeout_s)

    def receive(self, *, timeout_s: float) -> list[bytes]:
        """Return the frames of the next message; answers heartbeats meanwhile.

        TimeoutError loses nothing: what has come in part is there for the next call.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            flags, body = self._next_frame(deadline_s)
            if flags & _COMMAND:
                self._obey(body, deadline_s)
                continue
            self._parts.append(body)
            if not flags & _MORE:
                message, self._parts = self._parts, []
                return message

    def _shake_hands(self, path: str, socket_type: str, deadline_s: float) -> None:
        self._connect(path, deadline_s)
        self._send(_GREETING, deadline_s)
        greeting = self._take(GREETING_BYTES, deadline_s)
        if greeting[0] != 0xFF or not greeting[9] & 1 or greeting[10] < 3 or greeting[12:32].rstrip(b"\0") != b"NULL":
            raise NotZmtp(f"greeting {bytes(greeting[:12]).hex()}")
        ready = _command(b"READY", _property(b"Socket-Type", socket_type.encode()) + _property(b"Identity", b""))
        self._send(_frame(ready, _COMMAND), deadline_s)
        flags, body = self._next_frame(deadline_s)
        if not flags & _COMMAND or not body.startswith(b"\x05READY"):
            raise NotZmtp(f"answer to READY {body[:64]!r}")

    def _connect(self, path: str, deadline_s: float) -> None:
        """Connect. While the queue of the daemon's socket is full the kernel says EAGAIN at once (unix(7))."""
        while True:
            self._socket.settimeout(_left_s(deadline_s))
            try:
                return self._socket.connect(path)
            except BlockingIOError:
                time.sleep(min(QUEUE_FULL_AGAIN_S, _left_s(deadline_s)))

    def _obey(self, command: bytes, deadline_s: float) -> None:
        if command.startswith(b"\x04PING"):
            self._send(_frame(_command(b"PONG", command[_PING_HEADER_BYTES:]), _COMMAND), deadline_s)
        elif command.startswith(b"\x05ERROR"):
            raise NotZmtp(f"the peer refuses: {command[7:]!r}")

    def _send(self, wire: bytes, deadline_s: float) -> None:
        self._socket.settimeout(_left_s(deadline_s))
        self._socket.sendall(wire)

    def _next_frame(self, deadline_s: float) -> tuple[int, bytes]:
        """Return flags and body; takes them from the buffer only when the frame is complete."""
        self._fill(2, deadline_s)
        flags = self._buffer[0]
        header_bytes = 9 if flags & _LONG else 2
        self._fill(header_bytes, deadline_s)
        body_bytes = int.from_bytes(self._buffer[1:header_bytes], "big")
        if flags > _MORE | _LONG | _COMMAND or body_bytes > MESSAGE_MAX_BYTES:
            raise NotZmtp(f"frame with flags {flags:#x} and {body_bytes} bytes")
        self._fill(header_bytes + body_bytes, deadline_s)
        return flags, bytes(self._take(header_bytes + body_bytes, deadline_s)[header_bytes:])

    def _take(self, count: int, deadline_s: float) -> bytearray:
        self._fill(count, deadline_s)
        taken = self._buffer[:count]
        del self._buffer[:count]
        return taken

    def _fill(self, count: int, deadline_s: float) -> None:
        while len(self._buffer) < count:
            self._socket.settimeout(_left_s(deadline_s))
            received = self._socket.recv(65536)
            if not received:
                raise ConnectionResetError("the peer closed the connection")
            self._buffer += received


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    return left_s


def _frame(body: bytes, flags: int) -> bytes:
    if len(body) <= _SHORT_MAX_BYTES:
        return bytes((flags, len(body))) + body
    return bytes((flags | _LONG,)) + len(body).to_bytes(8, "big") + body


def _command(name: bytes, content: bytes) -> bytes:
    return bytes((len(name),)) + name + content


def _property(name: bytes, value: bytes) -> bytes:
    return _command(name, len(value).to_bytes(4, "big") + value)
