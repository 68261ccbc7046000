"""HTTP/1.1 for the simulated API server on its one loop; http.server would cost memory and a thread per client."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from gpuward.sim.vllm.console import say
from gpuward.sim.vllm.loop import Loop

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Request Entity Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_REQUEST_LINE: Final = re.compile(rb"([A-Z]{1,10}) (\S{1,4096}) HTTP/1\.([01])")
_HEAD_MAX_BYTES: Final = 65536
_BODY_MAX_BYTES: Final = 8 * 1024**2
_READ_BYTES: Final = 65536


class Request(NamedTuple):
    """One request, whole. ``line`` is for the access log, ``authorization`` what it has in the header of that name."""

    method: str
    path: str
    body: bytes
    line: str
    authorization: str = ""


class Exchange(NamedTuple):
    """A request and the way to answer it: once by `answer`, or by `stream`, any number of `event`, `finish`."""

    request: Request
    connection: Connection

    def answer(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        """Answer as a whole."""
        self.connection.write_head(
            status, self.request, f"content-length: {len(body)}\r\ncontent-type: {content_type}\r\n"
        )
        self.connection.write(body)
        self.connection.finish()

    def stream(self) -> None:
        """Begin an answer of server-sent events."""
        self.connection.write_head(
            200, self.request, "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
        )

    def event(self, payload: Mapping[str, object] | str) -> None:
        """Send one event."""
        text = payload if isinstance(payload, str) else json.dumps(payload, separators=(",", ":"))
        chunk = f"data: {text}\n\n".encode()
        self.connection.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))

    def finish(self) -> None:
        """End a stream."""
        self.connection.write(b"0\r\n\r\n")
        self.connection.finish()


class Connection:
    """One client. ``busy`` from a whole request to the end of its answer; requests after it wait for that."""

    def __init__(self, server: WebServer, client: socket.socket, peer: str) -> None:
        self._server = server
        self._socket = client
        self._peer = peer
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._keep = True
        self._closed = False
        self.busy = False
        self.gone: Callable[[], None] | None = None

    def write_head(self, status: int, request: Request, headers: str) -> None:
        """Send status line and headers, and the line that uvicorn logs."""
        reason = _REASONS[status]
        if self._server.logs(request.path):
            say(f'INFO:     {self._peer} - "{request.line}" {status} {reason}')
        connection = "keep-alive" if self._keep else "close"
        self.write(
            f"HTTP/1.1 {status} {reason}\r\nserver: uvicorn\r\nconnection: {connection}\r\n{headers}\r\n".encode()
        )

    def write(self, content: bytes) -> None:
        """Send as much as the client takes, the rest when it takes more."""
        self._outgoing += content
        self._flush()

    def finish(self) -> None:
        """The answer is complete: take the next request, or close."""
        self.busy, self.gone = False, None
        if not self._keep and not self._outgoing:
            self.close()
        elif not self._closed:
            self._next_request()

    def on_ready(self) -> None:
        """Read what came; notice a client that left."""
        self._flush()
        try:
            content = self._socket.recv(_READ_BYTES) if not self._closed else b""
        except BlockingIOError:
            return
        except OSError:
            content = b""
        if not content:
            self.close()
            return
        self._incoming += content
        if len(self._incoming) > _HEAD_MAX_BYTES + _BODY_MAX_BYTES:
            self.close()
        elif not self.busy:
            self._next_request()

    def close(self) -> None:
        """Drop the client; whoever works for it is told."""
        if self._closed:
            return
        self._closed = True
        self._server.forget(self, self._socket)
        self._socket.close()
        if self.gone is not None:
            self.gone()
            self.gone = None

    def _flush(self) -> None:
        if self._closed:
            return
        try:
            while self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._server.watch(self, self._socket, writing=bool(self._outgoing))
        if not self._outgoing and not self.busy and not self._keep:
            self.close()

    def _next_request(self) -> None:
        head, separator, rest = bytes(self._incoming).partition(b"\r\n\r\n")
        if not separator:
            if len(head) > _HEAD_MAX_BYTES:
                self.close()
            return
        first, *lines = head.split(b"\r\n")
        match = _REQUEST_LINE.fullmatch(first)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        length = headers.get(b"content-length", b"0")
        if match is None or not length.isdigit() or int(length) > _BODY_MAX_BYTES or b"transfer-encoding" in headers:
            self.close()
            return
        if len(rest) < int(length):
            return
        self._incoming = bytearray(rest[int(length) :])
        self._keep = headers.get(b"connection", b"").lower() != b"close" and match[3] == b"1"
        self.busy = True
        line = first.decode("latin-1")
        path = match[2].decode("latin-1").partition("?")[0]
        authorization = headers.get(b"authorization", b"").decode("latin-1")
        self._server.serve(Exchange(Request(match[1].decode(), path, rest[: int(length)], line, authorization), self))


class WebServer:
    """Binds early and listens late, as vLLM does (entrypoints/launchers/launcher.py, create_server_socket)."""

    def __init__(
        self, loop: Loop, serve: Callable[[Exchange], None], *, access_log: bool, quiet: tuple[str, ...] = ()
    ) -> None:
        self._loop = loop
        self.serve = serve
        self.tls: Callable[[socket.socket], socket.socket] | None = None
        self._access_log = access_log
        self._quiet = quiet
        self._listener: socket.socket | None = None
        self._connections: set[Connection] = set()

    def logs(self, path: str) -> bool:
        """Whether a request for this path is one line of the log."""
        return self._access_log and path not in self._quiet

    def bind(self, host: str, port: int) -> None:
        """Take the port without listening. Raises OSError where somebody listens there."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((host, port))
        self._listener.setblocking(False)

    def listen(self) -> None:
        """Accept clients. A port taken meanwhile goes unnoticed: under uvloop too it only believes it serves."""
        assert self._listener is not None
        with contextlib.suppress(OSError):
            self._listener.listen(2048)
            self._loop.watch(self._listener, self._accept)

    def close_listener(self) -> None:
        """Free the port and drop the clients that wait for no answer."""
        if self._listener is not None:
            self._loop.unwatch(self._listener)
            self._listener.close()
            self._listener = None
        for connection in list(self._connections):
            if not connection.busy:
                connection.close()

    @property
    def busy(self) -> int:
        """Clients that wait for an answer."""
        return sum(connection.busy for connection in self._connections)

    def watch(self, connection: Connection, client: socket.socket, *, writing: bool) -> None:
        """Call the connection when its client can be read, or also written."""
        self._loop.watch(client, connection.on_ready, writing=writing)

    def forget(self, connection: Connection, client: socket.socket) -> None:
        """A connection is about to close."""
        self._loop.unwatch(client)
        self._connections.discard(connection)

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            client, address = self._listener.accept()
            if self.tls is not None:
                try:
                    client = self.tls(client)
                except OSError:
                    client.close()
                    return
            client.setblocking(False)
            connection = Connection(self, client, f"{address[0]}:{address[1]}")
            self._connections.add(connection)
            self.watch(connection, client, writing=False)
