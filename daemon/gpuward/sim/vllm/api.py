"""The endpoints of a simulated worker: vLLM 0.32.0's OpenAI surface, with text that depends on the prompt alone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Final

from gpuward.sim.vllm.arguments import ServeArguments
from gpuward.sim.vllm.completions import BadRequest, Completion, read_completion
from gpuward.sim.vllm.console import VERSION, Console
from gpuward.sim.vllm.faults import parse_faults
from gpuward.sim.vllm.loop import Channel
from gpuward.sim.vllm.metrics import Metrics
from gpuward.sim.vllm.web import Exchange

ENGINE_DEAD: Final = "EngineCore encountered an issue. See stack trace (above) for the root cause."


NO_NEW: Final = "cannot schedule new futures after shutdown"


class Api:
    """Answers requests; hands generation to the engine. ``fail`` shows a fault of the API server itself."""

    def __init__(
        self,
        arguments: ServeArguments,
        max_model_len: int,
        kv_tokens: int,
        engine: Channel,
        fail: Callable[[str], None],
    ) -> None:
        self._arguments = arguments
        self._max_model_len = max_model_len
        self._engine = engine
        self._fail = fail
        self._metrics = Metrics(arguments.served_name, arguments.gpu_memory_utilization, kv_tokens)
        self._created = int(time.time())
        self._requests = 0
        self._running: dict[int, Completion] = {}
        self.errored = False
        self._keys = arguments.api_keys or tuple(filter(None, [os.environ.get("VLLM_API_KEY")]))
        self._asleep: list[tuple[int, int]] | None = None
        self._draining = False
        self._routes: dict[tuple[str, str], Callable[[Exchange], None]] = {
            ("GET", "/health"): self._health,
            ("GET", "/ping"): self._health,
            ("POST", "/ping"): self._health,
            ("GET", "/version"): lambda exchange: _answer(exchange, {"version": VERSION}),
            ("GET", "/load"): lambda exchange: _answer(exchange, {"server_load": 0}),
            ("GET", "/v1/models"): self._models,
            ("GET", "/metrics"): self._show_metrics,
            ("POST", "/sim/fault"): self._take_fault,
        }
        if arguments.pooling:
            self._routes |= {("POST", "/v1/embeddings"): self._embed, ("POST", "/pooling"): self._embed}
        else:
            self._routes |= {("POST", f"/v1/{kind}"): self._complete for kind in ("completions", "chat/completions")}
        if os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
            self._routes |= {
                ("POST", "/sleep"): lambda exchange: self._sleep(exchange, metric=True),
                ("POST", "/pause"): lambda exchange: self._sleep(exchange, metric=False),
                ("POST", "/wake_up"): self._wake_up,
                ("POST", "/resume"): self._wake_up,
                ("GET", "/is_sleeping"): lambda exchange: _answer(exchange, {"is_sleeping": self._asleep is not None}),
            }

    def serve(self, exchange: Exchange) -> None:
        """Answer, now or when the engine has."""
        request = exchange.request
        if self._keys and request.path.startswith("/v1") and not self._has_key(request.authorization):
            _answer(exchange, {"error": "Unauthorized"}, 401)
            return
        route = self._routes.get((request.method, request.path))
        if route is not None:
            route(exchange)
        elif any(path == request.path for _, path in self._routes):
            _answer(exchange, {"detail": "Method Not Allowed"}, 405)
        else:
            _answer(exchange, {"detail": "Not Found"}, 404)

    def _has_key(self, authorization: str) -> bool:
        return authorization in {f"Bearer {key}" for key in self._keys}

    def record_step(self, running: int, waiting: int, produced: list[int]) -> None:
        """The engine made a token for each request in ``produced``."""
        self._metrics.record_step(running, waiting, len(produced))
        for number in produced:
            completion = self._running.get(number)
            if completion is not None and completion.add_token():
                del self._running[number]
                self._metrics.finished[completion.finish_reason] += 1

    def end_with_engine(self) -> None:
        """The engine is dead: say so to everyone who waits."""
        self.errored = True
        for completion in self._running.values():
            completion.exchange.connection.gone = None
            completion.break_off(ENGINE_DEAD)
        self._running.clear()

    def begin_drain(self) -> None:
        """Refuse what comes from now on; `/health` stays 200 (vLLM 0.32.0, measured)."""
        self._draining = True

    def abort_all(self) -> None:
        """End what has begun: 200 with what there is and finish_reason abort (vLLM 0.32.0 without a drain).

        Who has no token yet is told nothing: the engine is killed before that gets out.
        """
        for number, completion in tuple(self._running.items()):
            if completion.produced:
                del self._running[number]
                self._metrics.finished["abort"] += 1
                completion.exchange.connection.gone = None
                completion.abort()

    def _health(self, exchange: Exchange) -> None:
        exchange.answer(503 if self.errored else 200, b"")

    def _models(self, exchange: Exchange) -> None:
        models: list[dict[str, object]] = [
            {
                "id": name,
                "object": "model",
                "created": self._created,
                "owned_by": "vllm",
                "root": self._arguments.model,
                "parent": None,
                "max_model_len": self._max_model_len,
            }
            for name in (self._arguments.served_name, *self._arguments.other_names)
        ]
        _answer(exchange, {"object": "list", "data": models})

    def _show_metrics(self, exchange: Exchange) -> None:
        if not self._arguments.log_stats:
            exchange.answer(200, b"python_info 1.0\n", "text/plain; version=0.0.4; charset=utf-8")
            return
        cached = sum(completion.prompt_tokens + completion.produced for completion in self._running.values())
        exchange.answer(200, self._metrics.text(cached).encode(), "text/plain; version=0.0.4; charset=utf-8")

    def _complete(self, exchange: Exchange) -> None:
        if self.errored:
            _refuse(exchange, 500, "InternalServerError", ENGINE_DEAD)
            return
        if self._draining:
            _refuse(exchange, 500, "InternalServerError", NO_NEW)
            return
        try:
            names = (self._arguments.served_name, *self._arguments.other_names)
            completion = read_completion(exchange, names, self._max_model_len, self._requests)
        except BadRequest as error:
            if error.status == 404:  # 0.33 logs whatever name was asked for, at ERROR
                said = f"Error with model error=ErrorInfo(message={str(error)!r}, type={error.kind!r}, code=404)"
                Console("APIServer").error("serving.py:280", [said])
            _refuse(exchange, error.status, error.kind, str(error))
            return
        number = self._requests
        self._requests += 1
        self._running[number] = completion
        self._metrics.prompt_tokens += completion.prompt_tokens
        exchange.connection.gone = lambda: self._abort(number)
        completion.begin()
        self._submit(number, completion.tokens)

    def _submit(self, number: int, tokens: int) -> None:
        """To the engine, or to those who wait until it wakes up."""
        if self._asleep is not None:
            self._asleep.append((number, tokens))
        else:
            self._engine.send("submit", number, tokens, wait=False)

    def _embed(self, exchange: Exchange) -> None:
        """An embedding is one step of the engine; its numbers mean nothing."""
        self._complete(exchange)

    def _sleep(self, exchange: Exchange, *, metric: bool) -> None:
        self._asleep = self._asleep or []
        self._metrics.asleep = metric
        exchange.answer(200, b"")

    def _wake_up(self, exchange: Exchange) -> None:
        held, self._asleep, self._metrics.asleep = self._asleep or [], None, False
        exchange.answer(200, b"")
        for number, tokens in held:
            self._submit(number, tokens)

    def _abort(self, number: int) -> None:
        """The client left."""
        if self._running.pop(number, None) is not None:
            self._metrics.finished["abort"] += 1
            self._engine.send("abort", number, wait=False)

    def _take_fault(self, exchange: Exchange) -> None:
        try:
            document = json.loads(exchange.request.body)
            text = str(document["fault"])
            parse_faults(text)
        except (ValueError, TypeError, KeyError) as error:
            _refuse(exchange, 400, "BadRequestError", f'want {{"fault": "..."}}: {error}')
            return
        _answer(exchange, {"fault": text})
        self._engine.send("fault", text, wait=False)
        self._fail(text)


def _answer(exchange: Exchange, document: dict[str, object], status: int = 200) -> None:
    exchange.answer(status, json.dumps(document, separators=(",", ":")).encode())


def _refuse(exchange: Exchange, status: int, kind: str, message: str) -> None:
    _answer(exchange, {"error": {"message": message, "type": kind, "param": None, "code": status}}, status)
