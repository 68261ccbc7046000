"""The API server's hold on its engine: one forked child and the channel to it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from typing import NoReturn

from gpuward.sim.vllm.engine import Engine, EngineJob
from gpuward.sim.vllm.loop import Channel


class EngineProcess:
    """Starts the engine, reaps it, kills it."""

    def __init__(self) -> None:
        self.pid = 0
        self.channel, self._far_end = Channel.pair()

    def start(self, job: EngineJob, close_inherited: Iterable[Callable[[], None]]) -> None:
        """Fork; ``close_inherited`` gives up in the child what is the API server's, above all its port."""
        self.pid = os.fork()
        if self.pid == 0:
            self._run(job, close_inherited)
        self._far_end.close()

    def reap(self) -> int:
        """Wait for its end; return its exit code as multiprocessing counts: negative for a signal."""
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else 0

    def kill(self) -> None:
        """End it, if it lives."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.reap()

    def _run(self, job: EngineJob, close_inherited: Iterable[Callable[[], None]]) -> NoReturn:
        """In the child. It leaves by `os._exit` whatever happens: nothing above it is its to unwind."""
        code = 1
        try:
            for close in close_inherited:
                close()
            self.channel.close()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            code = Engine(job, self._far_end).run()
        finally:
            os._exit(code)
