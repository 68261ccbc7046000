"""The end of a daemon that leaves its workers running: asked for by a command or by systemd, done by its life."""

from __future__ import annotations

import asyncio

from gpuward.policy.reasons import By


class Departure:
    """Made first and known to both sides; ``replaces``: the installed program goes on in this process."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.reason = ""
        self.replaces = False
        self.by: By | None = None

    def ask(self, reason: str, *, by: By | None = None, replace: bool = False) -> None:
        """Have the daemon end once the answer is out; whoever asks first is heard."""
        if not self.asked.is_set():
            self.reason, self.replaces, self.by = reason, replace, by
            self.asked.set()
