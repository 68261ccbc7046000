"""One HTTP/1.1 request with a limit on everything: time, headers, body. For probes on this host; no TLS, no redirects.

Not http.client: it would block the loop, and with its imports costs the daemon several MiB.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Final

from gpuward.engines.launch import Address

STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})\b")
HEADER_BYTES_MAX: Final = 32 * 1024
BODY_BYTES_MAX: Final = 1024 * 1024


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


async def post(target: Address, document: bytes, timeout_s: float) -> Answer:
    """Return the answer to one POST of a JSON document on a connection of its own.

    Raises OSError where there is no connection, TimeoutError after ``timeout_s`` in all, BadAnswer.
    """
    framing = f"Content-Type: application/json\r\nContent-Length: {len(document)}\r\n"
    return await _ask("POST", target, framing, document, timeout_s)


async def _ask(method: str, target: Address, framing: str, body: bytes, timeout_s: float) -> Answer:
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(target.host, target.port, limit=HEADER_BYTES_MAX)
        try:
            host = f"[{target.host}]" if ":" in target.host else target.host
            writer.write(
                f"{method} {target.path} HTTP/1.1\r\nHost: {host}:{target.port}\r\nUser-Agent: gpuward\r\n"
                f"{framing}Accept: */*\r\nConnection: close\r\n\r\n".encode()
                + body
            )
            return await _answer(reader, str(writer.get_extra_info("peername")[0]))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise BadAnswer(f"an answer that is not HTTP/1.1 or is too long: {error}") from error
        finally:
            writer.transport.abort()  # nothing is left to say, and a peer that hangs must not hold us in close()


async def _answer(reader: asyncio.StreamReader, peer: str) -> Answer:
    head = await reader.readuntil(b"\r\n\r\n")
    status = STATUS.match(head)
    if status is None:
        raise BadAnswer(f"an answer that is not HTTP: {head[:40]!r}")
    headers = head.lower().split(b"\r\n")[1:]
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(b":") for line in headers)}
    return Answer(int(status[1]), await _body(reader, int(status[1]), fields), peer.removeprefix("::ffff:"))


async def _body(reader: asyncio.StreamReader, status: int, fields: dict[bytes, bytes]) -> bytes:
    """Return the body as the headers frame it: none, in chunks, by length, or up to the end of the connection."""
    if status in {204, 304}:
        return b""
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        return await _chunks(reader)
    if b"content-length" in fields:
        length = int(fields[b"content-length"])
        if not 0 <= length <= BODY_BYTES_MAX:
            raise BadAnswer(f"a body of {length} bytes, more than {BODY_BYTES_MAX}")
        return await reader.readexactly(length)
    body = b""
    while chunk := await reader.read(HEADER_BYTES_MAX):
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise BadAnswer(f"a body of more than {BODY_BYTES_MAX} bytes")
    return body


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        if size == 0:
            return body
        if len(body) + size > BODY_BYTES_MAX:
            raise BadAnswer(f"a body of more than {BODY_BYTES_MAX} bytes")
        body += await reader.readexactly(size)
        await reader.readexactly(2)
