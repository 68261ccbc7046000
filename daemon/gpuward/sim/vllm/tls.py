"""TLS for the simulated API server; imported by those that serve it only, for its memory."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Final

_HANDSHAKE_S: Final = 2.0


class _Tls(ssl.SSLSocket):
    """A socket that says "would block" as a plain one does, and hands out all that has come at once."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Read; what TLS has taken from the socket already would wake nobody."""
        try:
            content = super().recv(buflen, flags)
            while pending := self.pending():
                content += super().recv(pending, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            raise BlockingIOError from error
        return content

    def send(self, data: bytes | bytearray, flags: int = 0) -> int:  # type: ignore[override]
        """Write."""
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            raise BlockingIOError from error


def tls_with(certificate: str, key: str | None) -> Callable[[socket.socket], socket.socket]:
    """Return what makes an accepted socket one of TLS; the handshake may hold the loop for a moment. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslsocket_class = _Tls
    context.load_cert_chain(certificate, key)

    def wrap(plain: socket.socket) -> socket.socket:
        plain.settimeout(_HANDSHAKE_S)
        return context.wrap_socket(plain, server_side=True)

    return wrap
