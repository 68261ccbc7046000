"""How the API server leaves when asked: abort or drain, then only once no client waits for an answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from gpuward.sim.vllm.console import Console, say
from gpuward.sim.vllm.engine_process import EngineProcess
from gpuward.sim.vllm.loop import Loop
from gpuward.sim.vllm.web import WebServer

_LOOK_S: Final = 0.05


class Departure:
    """One stop, from SIGTERM to the end; calls ``done`` then."""

    def __init__(
        self, loop: Loop, web: WebServer, engine: EngineProcess, console: Console, done: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._web = web
        self._engine = engine
        self._console = console
        self._done = done

    def begin(self, timeout_s: float) -> None:
        """Let requests run for ``timeout_s`` at most; 0 aborts them, but waits until their clients hang up."""
        mode = "drain" if timeout_s > 0 else "abort"
        stopping = f"[shutdown] API server: stopping engine client mode={mode} timeout={timeout_s:.0f}s"
        self._console.info("launcher.py:254", "[shutdown] API server: shutdown triggered")
        self._console.info("launcher.py:270", stopping)
        self._drain(time.monotonic() + timeout_s)

    def _drain(self, deadline_s: float) -> None:
        if self._web.busy and time.monotonic() < deadline_s:
            self._loop.call_later(_LOOK_S, lambda: self._drain(deadline_s))
            return
        killing = f"[shutdown] Process manager: force killing remaining process EngineCore pid {self._engine.pid}"
        self._console.warning("utils.py:653", killing)
        self._engine.kill()
        self._web.close_listener()
        say("INFO:     Shutting down")
        if self._web.busy:
            say("INFO:     Waiting for connections to close. (CTRL+C to force quit)")
        self._await_clients()

    def _await_clients(self) -> None:
        if self._web.busy:
            self._loop.call_later(_LOOK_S, self._await_clients)
        else:
            say("INFO:     Waiting for application shutdown.", "INFO:     Application shutdown complete.")
            self._done()
