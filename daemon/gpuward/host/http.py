"""One HTTP/1.1 request with a limit on everything: time, headers, body. For probes on this host; no redirects.

Over TLS no certificate is looked at: a worker is asked on its own host, where its listener proves whose it is.

Not http.client: it would block the loop, and with its imports costs the daemon several MiB.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from gpuward.host.address import Address
from gpuward.host.text import clean

STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})\b")
HEADER_BYTES_MAX: Final = 32 * 1024
BODY_BYTES_MAX: Final = 1024 * 1024
CHUNKS_MAX: Final = 4096
CHUNK_LINE_BYTES_MAX: Final = 1024
CHUNK_SIZE: Final = re.compile(rb"[0-9a-fA-F]{1,8}")
SIZE_DIGITS_MAX: Final = 8
READ_BYTES: Final = 64 * 1024


class BadAnswer(Exception):
    """What came back is not HTTP, or more than is read; the message says what came."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Status code and body of one answer. ``peer`` is the IP address that gave it."""

    status: int
    body: bytes
    peer: str


async def get(target: Address, timeout_s: float) -> Answer:
    """Return the answer to one GET on a connection of its own; raises as `post` does."""
    return await _ask("GET", target, "", b"", timeout_s)


async def post(target: Address, document: bytes, timeout_s: float, headers: Mapping[str, str] | None = None) -> Answer:
    """Return the answer to one POST of a JSON document on a connection of its own.

    Raises OSError where there is no connection, TimeoutError after ``timeout_s`` in all, BadAnswer.
    """
    framing = f"Content-Type: application/json\r\nContent-Length: {len(document)}\r\n"
    framing += "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return await _ask("POST", target, framing, document, timeout_s)


async def _ask(method: str, target: Address, framing: str, body: bytes, timeout_s: float) -> Answer:
    async with asyncio.timeout(timeout_s):
        context = _tls() if target.tls else None
        reader, writer = await asyncio.open_connection(target.host, target.port, limit=HEADER_BYTES_MAX, ssl=context)
        try:
            host = f"[{target.host}]" if ":" in target.host else target.host
            writer.write(
                f"{method} {target.path} HTTP/1.1\r\nHost: {host}:{target.port}\r\nUser-Agent: gpuward\r\n"
                f"{framing}{_authorization(target.key)}Accept: */*\r\nConnection: close\r\n\r\n".encode()
                + body
            )
            return await _answer(reader, _peer_of(writer))
        finally:
            writer.transport.abort()  # nothing is left to say, and a peer that hangs must not hold us in close()


def _peer_of(writer: asyncio.StreamWriter) -> str:
    """The address at the other end, which a connection that was reset at once has not (getpeername(2), ENOTCONN)."""
    name = writer.get_extra_info("peername")
    if name is None:
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    return str(name[0])


@cache
def _tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _authorization(key: str) -> str:
    return f"Authorization: Bearer {key}\r\n" if key.isprintable() and key else ""


async def _answer(reader: asyncio.StreamReader, peer: str) -> Answer:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise BadAnswer(f"headers of more than {HEADER_BYTES_MAX} bytes") from None
    except asyncio.IncompleteReadError as error:
        raise BadAnswer(f"no whole HTTP answer: {_shown(error.partial)}") from None
    status = STATUS.match(head)
    if status is None:
        raise BadAnswer(f"an answer that is not HTTP: {_shown(head)}")
    headers = head.lower().split(b"\r\n")[1:]
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(b":") for line in headers)}
    body = _body_by(int(status[1]), fields)
    while not body.whole:
        received = await reader.read(READ_BYTES)
        body.take(received)
    return Answer(int(status[1]), bytes(body.content), peer.removeprefix("::ffff:"))


def _shown(raw: bytes) -> str:
    return clean(repr(raw[:40])[1:]) if raw else "nothing came"


def _body_by(status: int, fields: dict[bytes, bytes]) -> _Body:
    """The body as the headers frame it: none, in chunks, by length, or up to the end of the connection."""
    if status in {204, 304}:
        return _Sized(0)
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        return _Chunked()
    length = fields.get(b"content-length")
    if length is None:
        return _UntilTheEnd()
    if not length.isdigit() or len(length) > SIZE_DIGITS_MAX or int(length) > BODY_BYTES_MAX:
        raise BadAnswer(f"a body of {_shown(length)} bytes, more than {BODY_BYTES_MAX}")
    return _Sized(int(length))


class _Body:
    """What has come of a body. ``take`` gets what was received, empty at the end; BadAnswer where it is too much."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.whole = False

    def take(self, received: bytes) -> None:
        if not received:
            raise BadAnswer(f"a body that ends after {len(self.content)} bytes")
        self._add(received)

    def _add(self, received: bytes | bytearray) -> None:
        self.content += received
        if len(self.content) > BODY_BYTES_MAX:
            raise BadAnswer(f"a body of more than {BODY_BYTES_MAX} bytes")


class _Sized(_Body):
    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length
        self.whole = length == 0

    def take(self, received: bytes) -> None:
        super().take(received)
        self.whole = len(self.content) >= self._length
        del self.content[self._length :]


class _UntilTheEnd(_Body):
    def take(self, received: bytes) -> None:
        self.whole = not received
        self._add(received)


class _Chunked(_Body):
    """Chunks, at most `CHUNKS_MAX`: a million of one byte each would cost seconds to take apart (RFC 9112, 7.1)."""

    def __init__(self) -> None:
        super().__init__()
        self._raw = bytearray()
        self._chunks = 0

    def take(self, received: bytes) -> None:
        if not received:
            raise BadAnswer(f"a body that ends after {len(self.content)} bytes")
        self._raw += received
        at = 0
        while not self.whole and (line_end := self._raw.find(b"\r\n", at, at + CHUNK_LINE_BYTES_MAX)) >= 0:
            size = _chunk_size(bytes(self._raw[at:line_end]))
            after = line_end + 2 + size + 2
            if size and after > len(self._raw):
                break
            self._add(self._raw[line_end + 2 : line_end + 2 + size])
            at, self.whole, self._chunks = after, size == 0, self._chunks + 1
            if self._chunks > CHUNKS_MAX:
                raise BadAnswer(f"a body of more than {CHUNKS_MAX} chunks")
        del self._raw[:at]
        if not self.whole and len(self._raw) > BODY_BYTES_MAX + CHUNK_LINE_BYTES_MAX:
            raise BadAnswer("a body that is not in chunks")


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not CHUNK_SIZE.fullmatch(digits) or int(digits, 16) > BODY_BYTES_MAX:
        raise BadAnswer(f"a chunk of {_shown(digits)} bytes, more than {BODY_BYTES_MAX}")
    return int(digits, 16)
