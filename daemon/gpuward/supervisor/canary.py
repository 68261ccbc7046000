"""Asks a worker for the least that it can do: one token, or what a model without tokens gives. Judges nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from gpuward.host.address import Address
from gpuward.host.http import BadAnswer, post

SERVER_ERRORS: Final = frozenset({500, 503})
"""Answers of an API server whose engine is dead."""

OK: Final = 200
NOT_FOUND: Final = 404
KEY_WANTED: Final = frozenset({401, 403})

QUESTIONS: Final[tuple[tuple[str, Mapping[str, Any]], ...]] = (
    ("/v1/completions", {"prompt": "1", "max_tokens": 1}),
    ("/v1/embeddings", {"input": "1"}),
    ("/pooling", {"input": "1"}),
    ("/classify", {"input": "1"}),
)
"""A vLLM has the paths of the tasks that its model supports; the others answer 404."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What became of a question; ``said`` tells what came instead of an answer."""

    canary: Literal["came", "overdue", "failed", "refused"]
    said: str = ""


class Canary:
    """Remembers which question a worker understands, and asks the engines of one worker in turn."""

    def __init__(self, target: Address, model: str) -> None:
        self._target = target
        self._model = model
        self._question = 0
        self._turn = 0

    async def ask(self, limit_s: float, engines: int = 1) -> Heard:
        """Ask once, at most ``limit_s`` for each question that it does not understand."""
        for _ in QUESTIONS:
            heard = await self._ask(limit_s, engines)
            if heard is not None:
                return heard
            self._question = (self._question + 1) % len(QUESTIONS)
        paths = ", ".join(path for path, _ in QUESTIONS)
        return Heard("refused", f"it has none of {paths}")

    async def _ask(self, limit_s: float, engines: int) -> Heard | None:
        """None where it does not know this question."""
        path, question = QUESTIONS[self._question]
        document = json.dumps({"model": self._model, **question}).encode()
        rank = {"X-data-parallel-rank": str(self._turn % engines)} if engines > 1 else {}
        try:
            answer = await post(replace(self._target, path=path), document, limit_s, rank)
        except (OSError, TimeoutError, BadAnswer) as error:
            return Heard("overdue", str(error) or f"not within {limit_s:g} s")
        if answer.status == NOT_FOUND:
            return None
        if answer.status == OK:
            self._turn += 1
            return Heard("came")
        if answer.status in SERVER_ERRORS:
            return Heard("failed", f"status {answer.status}")
        wants = "it wants an API key that the pool does not name" if answer.status in KEY_WANTED else "it refuses"
        return Heard("refused", f"{wants} (POST {path} answers {answer.status})")
