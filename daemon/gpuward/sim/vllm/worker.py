"""The simulated vLLM worker: ``python -m gpuward.sim.vllm.worker serve MODEL [vllm arguments]``.

A real process tree with vLLM's behaviour at its surface: arguments, environment, log lines, endpoints, exit codes, and
the ways in which it fails (facts measured on vLLM 0.32.0). No GPU, no model, standard library only.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Final

from gpuward.sim.vllm.api import ENGINE_DEAD, Api
from gpuward.sim.vllm.arguments import ServeArguments, parse_serve
from gpuward.sim.vllm.console import VERSION, Console, say, traceback
from gpuward.sim.vllm.departure import Departure
from gpuward.sim.vllm.devices import known_devices, visible_devices
from gpuward.sim.vllm.engine import EngineJob
from gpuward.sim.vllm.engine_process import EngineProcess
from gpuward.sim.vllm.errors import ERRORS
from gpuward.sim.vllm.faults import Fault, parse_faults
from gpuward.sim.vllm.loop import Loop
from gpuward.sim.vllm.model import ConfigRefused, check_config, model_length
from gpuward.sim.vllm.settings import HELP, Settings, read_settings
from gpuward.sim.vllm.web import Exchange, WebServer

USAGE: Final = """\
usage: python -m gpuward.sim.vllm.worker serve MODEL [vllm serve arguments]

A stand-in for `vllm serve` on a host without GPUs. It takes vLLM's arguments, starts the same processes, says the same
in its log, and serves /health, /ping, /version, /load, /metrics, /v1/models, /v1/completions, /v1/chat/completions."""

_IMPORTS_SHARE: Final = 0.1


class EngineFailed(Exception):
    """The engine ended before it was ready; the text has vLLM's words, with exit codes."""


class ApiServer:
    """The main process of one worker: an engine child, an HTTP server, and what signals do to them."""

    def __init__(self, arguments: ServeArguments, settings: Settings) -> None:
        self._arguments = arguments
        self._settings = settings
        self._console = Console("APIServer")
        self._loop = Loop()
        self._web = WebServer(self._loop, self._serve, access_log=arguments.access_log, quiet=arguments.quiet_endpoints)
        self._api: Api | None = None
        self._engine = EngineProcess()
        self._exit_code = 0
        self._stopping = False
        self._started_at_s = time.monotonic()
        self._terms = 0

    def run(self) -> int:
        """Serve until told to end, or until the engine is dead; return the exit code, 0 for both, as vLLM does."""
        self._console.info("utils.py:306", f"vLLM API server version {VERSION} (simulated by gpuward)")
        time.sleep(self._settings.start_s * _IMPORTS_SHARE)
        try:
            if self._arguments.certificate is not None:
                from gpuward.sim.vllm.tls import tls_with

                self._web.tls = tls_with(*self._arguments.certificate)
            self._web.bind(self._arguments.host, self._arguments.port)
            job = self._job()
            self._start_engine(job)
            self._become_ready(job, self._await_engine())
            self._loop.run()
        except OSError as error:
            return self._fail(
                "launchers/launcher.py", 348, "sock.bind(addr)", f"OSError: [Errno {error.errno}] {error.strerror}"
            )
        except ConfigRefused as error:
            return self._fail("engine/arg_utils.py", 2210, "create_engine_config()", str(error))
        except EngineFailed as error:
            return self._fail("v1/engine/utils.py", 1431, "raise RuntimeError(", str(error))
        finally:
            self._engine.kill()
        return self._exit_code

    def _job(self) -> EngineJob:
        try:
            devices = visible_devices(known_devices(os.environ), os.environ)
        except ValueError as error:
            raise ConfigRefused(f"ValueError: {error}") from error
        check_config(self._arguments, len(devices))
        told = self._settings.fault("error", "start")
        if told is not None and ERRORS[told.name].process == "api":
            raise ConfigRefused(ERRORS[told.name].text)
        return EngineJob(self._arguments, self._settings, devices, model_length(self._arguments))

    def _fail(self, file: str, line: int, code: str, error: str) -> int:
        self._console.plain(traceback(file, line, "main", code, error))
        return 1

    # The engine

    def _start_engine(self, job: EngineJob) -> None:
        """Fork it, with nothing open of ours but its channel; from here on a first SIGTERM is lost (vLLM 0.32.0)."""
        self._loop.on_signal(signal.SIGINT, self._on_term)
        if not any(fault.kind == "ignore-term" for fault in self._settings.faults):
            self._loop.on_signal(signal.SIGTERM, self._on_term)
        self._engine.start(job, [self._loop.close, self._web.close_listener])

    def _await_engine(self) -> int:
        """Wait for the engine's word; return the size of its KV cache in tokens. Raises EngineFailed."""
        heard: list[object] = []

        def listen() -> None:
            heard.append(self._engine.channel.receive())
            self._loop.stop()

        self._loop.watch(self._engine.channel.socket, listen)
        self._schedule_faults(self._settings.faults, "start")
        self._loop.run()
        match heard:
            case [["ready", int(kv_tokens)]]:
                return kv_tokens
            case [None]:
                failed = {"EngineCore": self._engine.reap()}
                raise EngineFailed(
                    "RuntimeError: Engine core initialization failed. See root cause above. "
                    f"Failed core proc(s): {failed}"
                )
            case _:
                raise SystemExit(self._exit_code)

    # Ready

    def _become_ready(self, job: EngineJob, kv_tokens: int) -> None:
        self._api = Api(self._arguments, job.max_model_len, kv_tokens, self._engine.channel, self._on_fault_asked)
        self._loop.watch(self._engine.channel.socket, self._on_engine)
        host, port = self._arguments.host, self._arguments.port
        self._console.info("entry.py:136", f"Supported tasks: ['{'embed' if self._arguments.pooling else 'generate'}']")
        self._console.info("entry.py:140", f"Starting vLLM server on http://{host}:{port}")
        self._web.listen()
        say(f"INFO:     Started server process [{os.getpid()}]", "INFO:     Waiting for application startup.")
        say("INFO:     Application startup complete.")
        self._schedule_faults(self._settings.faults, "run")

    def _serve(self, exchange: Exchange) -> None:
        assert self._api is not None
        self._api.serve(exchange)

    def _on_engine(self) -> None:
        assert self._api is not None
        match self._engine.channel.receive():
            case ["step", int(running), int(waiting), list(produced)]:
                self._api.record_step(running, waiting, [number for number in produced if isinstance(number, int)])
            case None:
                self._loop.unwatch(self._engine.channel.socket)
                if not self._stopping:
                    self._on_engine_dead(self._api)
            case message:
                raise AssertionError(message)

    def _on_engine_dead(self, api: Api) -> None:
        """503 from now on; the watchdog's next tick ends the process, with exit code 0 (vLLM issue 48966)."""
        self._engine.reap()
        core_client = "core_client.py:817"
        self._console.warning(core_client, "[shutdown] MPClient: engine core exited unexpectedly; starting cleanup")
        dead = f"vllm.v1.engine.exceptions.EngineDeadError: {ENGINE_DEAD}"
        lines = traceback(
            "v1/engine/async_llm.py", 849, "output_handler", "outputs = await engine_core.get_output_async()", dead
        )
        self._console.error("async_llm.py:906", ["AsyncLLM output_handler failed.", *lines])
        api.end_with_engine()
        tick_s = self._settings.watchdog_s
        to_tick_s = tick_s - (time.monotonic() - self._started_at_s) % tick_s
        self._loop.call_later(to_tick_s if to_tick_s > tick_s / 2 else to_tick_s + tick_s / 2, self._end)

    # Faults

    def _on_fault_asked(self, text: str) -> None:
        self._schedule_faults(parse_faults(text), "run")

    def _schedule_faults(self, faults: Sequence[Fault], phase: str) -> None:
        """The API server's own faults; the engine has its own list."""
        for fault in faults:
            if fault.kind == "exit" and fault.phase == phase:
                self._loop.call_later(fault.delay_s, lambda code=fault.value: self._end(code))  # type: ignore[misc]
            elif fault.kind == "ignore-term":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)

    # The end

    def _on_term(self) -> None:
        self._terms += 1
        if self._api is None:
            self._on_term_while_loading()
        elif self._stopping:
            self._end()
        else:
            self._stopping = True
            if self._arguments.shutdown_timeout_s > 0:
                self._api.begin_drain()
            else:
                self._api.abort_all()
            Departure(self._loop, self._web, self._engine, self._console, self._end).begin(
                self._arguments.shutdown_timeout_s
            )

    def _on_term_while_loading(self) -> None:
        if self._settings.term_at_start == "lost" and self._terms == 1:
            return
        self._engine.kill()
        interrupted = "KeyboardInterrupt: terminated"
        say(
            *traceback(
                "entrypoints/launchers/api_server/entry.py",
                172,
                "_interrupt_init",
                "raise KeyboardInterrupt",
                interrupted,
            )
        )
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)

    def _end(self, code: int = 0) -> None:
        self._exit_code = code
        self._loop.stop()


def main(arguments: Sequence[str]) -> int:
    """Run the worker; return its exit code."""
    if not arguments or arguments[0] in ("-h", "--help") or arguments[1:2] in (["-h"], ["--help"]):
        print(f"{USAGE}\n\n{HELP}", end="")  # noqa: T201
        return 0 if arguments else 2
    if arguments[0] in ("-v", "--version"):
        print(VERSION)  # noqa: T201
        return 0
    if arguments[0] != "serve":
        print(f"{USAGE}\nerror: argument subparser: invalid choice: {arguments[0]!r}", file=sys.stderr)  # noqa: T201
        return 2
    serve_arguments = parse_serve(arguments[1:])
    try:
        settings = read_settings(os.environ)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    signal.alarm(settings.life_s)
    return ApiServer(serve_arguments, settings).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
