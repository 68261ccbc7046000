"""The two commands that end this daemon and leave every worker running: detach, and reexec into a new version."""

from __future__ import annotations

import asyncio
import os

from gpuward import __version__
from gpuward.api.views import Document
from gpuward.control.server import Refusal
from gpuward.host.reexec import CannotReplace, installed_version
from gpuward.policy.reasons import By, named
from gpuward.supervisor.departure import Departure
from gpuward.supervisor.loop import Supervisor


class Leaving:
    """Answers ``detach`` and ``reexec``, which only an administrator may ask for."""

    def __init__(self, supervisor: Supervisor, departure: Departure) -> None:
        self._supervisor = supervisor
        self._departure = departure

    async def answer(self, op: str, by: By | None) -> Document:
        """Tell which workers keep running, and let the daemon end."""
        self._check(op)
        living = sorted(worker.name for worker in self._supervisor.state.workers.values() if worker.alive)
        if op == "detach":
            self._departure.ask(named("gpuctl daemon detach", by), by=by)
            return {"pid": os.getpid(), "workers": living}
        try:
            version = await asyncio.to_thread(installed_version)
        except CannotReplace as error:
            raise Refusal("refused", f"nothing was replaced, gpuward {__version__} goes on: {error}") from None
        self._check(op)
        reason = named(f"gpuctl daemon reexec from {__version__} to {version}", by)
        self._departure.ask(reason, by=by, replace=True)
        return {"pid": os.getpid(), "workers": living, "from_version": __version__, "version": version}

    def _check(self, op: str) -> None:
        if self._supervisor.state.halting:
            raise Refusal("shutting-down", f"cannot {op}: the daemon is stopping its workers and ends anyway")
