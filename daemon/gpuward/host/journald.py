"""Messages to systemd's journal with fields of their own, in its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).

``journalctl WORKER=decode/0 CAUSE=gpu-oom-runtime -p warning`` finds them. Sending never waits: what the journal does
not take at once is dropped and counted, and the next message that it takes says how many.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

SOCKET = "/run/systemd/journal/socket"
VALUE_MAX_BYTES = 48 * 1024
"""A datagram of 300 KB is refused (EMSGSIZE, measured on systemd 252); four values of this size still fit."""

FIELD_NAME_MAX = 64
PRIORITIES: Mapping[str, int] = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Levels as syslog(3) numbers them."""

_CUT = " ... (cut at 48 KiB)"


def is_journal(fd: int, environment: Mapping[str, str]) -> bool:
    """Whether a descriptor is the journal's: JOURNAL_STREAM is inherited even by who was given another output."""
    try:
        at = os.fstat(fd)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{at.st_dev}:{at.st_ino}"


def encode(fields: Mapping[str, object]) -> bytes:
    """The datagram of one message: names made upper case, values with a line break in the length-prefixed form."""
    return b"".join(_field(name, str(value)) for name, value in fields.items() if value is not None)


def _field(name: str, value: str) -> bytes:
    key = re.sub(r"[^A-Z0-9_]", "_", name.upper()).lstrip("_0123456789")[:FIELD_NAME_MAX].encode()
    text = value.encode("utf-8", "replace")
    if len(text) > VALUE_MAX_BYTES:
        text = text[: VALUE_MAX_BYTES - len(_CUT)].decode("utf-8", "ignore").encode() + _CUT.encode()
    if b"\n" in text:
        return key + b"\n" + len(text).to_bytes(8, "little") + text + b"\n"
    return key + b"=" + text + b"\n"


class JournalSocket:
    """The journal's datagram socket.

    ``dropped``: messages that it did not take; ``trouble``: why not the newest one, empty where it took that.
    """

    def __init__(self, path: str = SOCKET) -> None:
        self.dropped = 0
        self.trouble = ""
        self._untold = 0
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    @staticmethod
    def present(path: str = SOCKET) -> bool:
        """Whether there is a journal to send to."""
        return Path(path).is_socket()

    def send(self, message: bytes) -> None:
        """Send one encoded message, or count it."""
        lost = b"DROPPED_BEFORE=%d\n" % self._untold if self._untold else b""
        try:
            self._socket.sendto(message + lost, self._path)
        except OSError as error:
            self.dropped += 1
            self._untold += 1
            self.trouble = f"the journal does not take it: {error.strerror}"
        else:
            self._untold = 0
            self.trouble = ""

    def flush(self) -> None:
        """Do nothing: no message waits here."""

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
