"""Tell systemd how the daemon is (sd_notify(3)); without systemd every call does nothing."""

from __future__ import annotations

import math
import os
import socket
from contextlib import suppress


class Notify:
    """The datagram socket named by ``NOTIFY_SOCKET``."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        environment = dict(os.environ) if environment is None else environment
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        watchdog_us = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(watchdog_us) / 1e6 if watchdog_us.isdecimal() and ours else None
        self._fed_at_s = -math.inf
        self._status = ""

    @property
    def present(self) -> bool:
        """Whether somebody listens."""
        return bool(self._address)

    def tick_s(self, longest_s: float) -> float:
        """How long the loop may pause, at most ``longest_s``: four turns within the watchdog's time."""
        return longest_s if self.watchdog_s is None else min(longest_s, self.watchdog_s / 4)

    def ready(self, status: str) -> None:
        """The control socket answers and the inventory was asked; workers may still be loading."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """Set one line for ``systemctl status``; sent when it is another than before."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def turned(self, now_s: float) -> None:
        """The main loop has made a turn: feed the watchdog where it is due."""
        if self.watchdog_s is not None and now_s - self._fed_at_s > self.watchdog_s / 5:
            self._fed_at_s = now_s
            self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """A new fleet is being applied; `ready` ends it."""
        self._send("RELOADING=1")

    def stopping(self, extend_s: float) -> None:
        """Workers are being stopped, for at most ``extend_s`` seconds more."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(extend_s * 1e6)}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto(message.encode(), self._address)
