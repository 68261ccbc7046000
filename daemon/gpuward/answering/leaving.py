"""The two commands that end this daemon and leave every worker running: detach, and reexec into a new version."""

from __future__ import annotations

import asyncio
import os
from typing import Protocol

from gpuward import __version__
from gpuward.answering.views import Document
from gpuward.control.server import Refusal
from gpuward.host.reexec import CannotReplace, installed_version
from gpuward.policy.reasons import By, named
from gpuward.supervisor import Supervisor


class Life(Protocol):
    """The daemon's life, as far as a command may end it."""

    def detach(self, reason: str, *, replace: bool = False, by: By | None = None) -> None:
        """End it once the answer is out; with ``replace`` the installed program goes on in this process."""


class Leaving:
    """Answers ``detach`` and ``reexec``, which only an administrator may ask for."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.life: Life | None = None
        self._supervisor = supervisor

    async def answer(self, op: str, by: By | None) -> Document:
        """Tell which workers keep running, and let the daemon end."""
        self._check(op)
        living = sorted(worker.name for worker in self._supervisor.state.workers.values() if worker.alive)
        if op == "detach":
            self._leave("gpuctl daemon detach", by)
            return {"pid": os.getpid(), "workers": living}
        try:
            version = await asyncio.to_thread(installed_version)
        except CannotReplace as error:
            raise Refusal("refused", f"nothing was replaced, gpuward {__version__} goes on: {error}") from None
        self._check(op)
        self._leave(f"gpuctl daemon reexec from {__version__} to {version}", by, replace=True)
        return {"pid": os.getpid(), "workers": living, "from_version": __version__, "version": version}

    def _leave(self, reason: str, by: By | None, *, replace: bool = False) -> None:
        assert self.life is not None
        self.life.detach(named(reason, by), replace=replace, by=by)

    def _check(self, op: str) -> None:
        if self._supervisor.state.halting:
            raise Refusal("shutting-down", f"cannot {op}: the daemon is stopping its workers and ends anyway")
