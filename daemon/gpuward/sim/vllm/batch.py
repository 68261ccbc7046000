"""Which requests an engine runs and which wait; one token for each running one per step."""

from __future__ import annotations

from gpuward.sim.vllm.loop import Channel, Loop, Timer


class Batch:
    """Tokens still to produce, by request. Takes a step every ``token_s`` while something runs, else nothing."""

    def __init__(self, loop: Loop, api: Channel, token_s: float, running_max: int) -> None:
        self._loop = loop
        self._api = api
        self._token_s = token_s
        self._running_max = running_max
        self._running: dict[int, int] = {}
        self._waiting: dict[int, int] = {}
        self._step: Timer | None = None

    def add(self, request: int, tokens: int) -> None:
        """Take a request on."""
        self._waiting[request] = tokens
        self._admit()

    def drop(self, request: int) -> None:
        """Forget a request, if it is still here."""
        self._running.pop(request, None)
        self._waiting.pop(request, None)

    def clear(self) -> None:
        """Forget all requests."""
        self._running.clear()
        self._waiting.clear()

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._running_max:
            request = next(iter(self._waiting))
            self._running[request] = self._waiting.pop(request)
        if self._running and self._step is None:
            self._step = self._loop.call_later(self._token_s, self._take_step)

    def _take_step(self) -> None:
        self._step = None
        produced = list(self._running)
        self._running = {request: left - 1 for request, left in self._running.items() if left > 1}
        self._admit()
        self._api.send("step", len(self._running), len(self._waiting), produced)
