"""One completion: read strictly from a request, answered word by word as the engine produces tokens."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Final

from gpuward.sim.vllm.web import Exchange

_VOCABULARY: Final = """
the a one this every worker gpu memory model token cache stream batch prompt answer engine host daemon keeper
claim holds serves waits starts stops grows finds keeps shows writes reads counts in on with under after before
and or so
"""
_WORDS: Final = _VOCABULARY.split()
_COMPLETION_MAX_TOKENS: Final = 16
_NATURAL_MIN_TOKENS: Final = 8
_NATURAL_SPREAD_TOKENS: Final = 25


class BadRequest(Exception):
    """What is wrong with a request, as vLLM says it."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        self.status = status
        self.kind = kind
        super().__init__(message)


class Completion:
    """An answer in the making. ``tokens`` will be produced, ``produced`` are; one word is one token."""

    def __init__(self, exchange: Exchange, number: int, model: str, wanted: Wanted) -> None:
        self.exchange = exchange
        self.prompt_tokens = wanted.prompt_tokens
        self.tokens = wanted.tokens
        self.finish_reason = wanted.finish_reason
        self.produced = 0
        self._wanted = wanted
        self._chat = wanted.chat
        self._id = f"{'chatcmpl' if wanted.chat else 'cmpl'}-{number:08x}"
        self._model = model
        self._created = int(time.time())

    def begin(self) -> None:
        """Open the stream, where one is wanted."""
        if self._wanted.stream:
            self.exchange.stream()
            if self._chat:
                self._send_choice({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})

    def add_token(self) -> bool:
        """One more token; whether the answer is complete with it."""
        self.produced += 1
        complete = self.produced >= self.tokens
        if self._wanted.stream:
            word = _word(self._wanted.seed, self.produced - 1)
            text: dict[str, object] = {"delta": {"content": word}} if self._chat else {"text": word}
            self._send_choice(text | {"finish_reason": self.finish_reason if complete else None})
        if complete:
            self._finish()
        return complete

    def abort(self) -> None:
        """Finish before the end, as vLLM does when it is told to stop without a drain."""
        self.finish_reason = "abort"
        if self._wanted.stream:
            nothing: dict[str, object] = {"delta": {}} if self._chat else {"text": ""}
            self._send_choice(nothing | {"finish_reason": "abort"})
        self._finish()

    def break_off(self, message: str) -> None:
        """The engine died: an error instead of an answer, within the stream where it has begun."""
        error = {"error": {"message": message, "type": "InternalServerError", "param": None, "code": 500}}
        if self._wanted.stream:
            self.exchange.event(error)
            self.exchange.event("[DONE]")
            self.exchange.finish()
        else:
            self.exchange.answer(500, json.dumps(error).encode())

    def _finish(self) -> None:
        usage = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.produced,
            "total_tokens": self.prompt_tokens + self.produced,
        }
        if self._wanted.stream:
            if self._wanted.usage_in_stream:
                self.exchange.event(self._document([], streamed=True) | {"usage": usage})
            self.exchange.event("[DONE]")
            self.exchange.finish()
            return
        text = "".join(_word(self._wanted.seed, position) for position in range(self.produced))
        content: dict[str, object] = (
            {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        )
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": self.finish_reason}
        self.exchange.answer(200, json.dumps(self._document([choice], streamed=False) | {"usage": usage}).encode())

    def _send_choice(self, choice: Mapping[str, object]) -> None:
        self.exchange.event(self._document([{"index": 0, "logprobs": None, **choice}], streamed=True))

    def _document(self, choices: list[dict[str, object]], *, streamed: bool) -> dict[str, object]:
        kind = f"chat.completion{'.chunk' if streamed else ''}" if self._chat else "text_completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model, "choices": choices}


class Wanted:
    """What a request asks for. Raises BadRequest where that cannot be."""

    def __init__(self, document: Mapping[str, object], *, chat: bool, max_model_len: int) -> None:
        prompt = _prompt(document, chat=chat)
        self.chat = chat
        self.seed = zlib.crc32(prompt.encode("utf-8", "replace"))
        self.prompt_tokens = max(1, len(prompt.split()))
        self.stream = document.get("stream") is True
        options = document.get("stream_options")
        self.usage_in_stream = isinstance(options, dict) and options.get("include_usage") is True
        limit = self._limit(document, max_model_len)
        natural = _NATURAL_MIN_TOKENS + self.seed % _NATURAL_SPREAD_TOKENS
        self.tokens = limit if document.get("ignore_eos") is True else min(limit, natural)
        self.finish_reason = "stop" if self.tokens < limit or natural == limit else "length"

    def _limit(self, document: Mapping[str, object], max_model_len: int) -> int:
        room = max_model_len - self.prompt_tokens
        asked = document.get("max_completion_tokens") or document.get("max_tokens")
        if asked is None:
            asked = room if self.chat else min(room, _COMPLETION_MAX_TOKENS)
        if not isinstance(asked, int) or isinstance(asked, bool):
            raise BadRequest(400, "BadRequestError", f"max_tokens: Input should be a valid integer, got {asked!r}")
        if asked < 1 and room >= 1:
            raise BadRequest(400, "BadRequestError", f"max_tokens must be at least 1, got {asked}.")
        if asked > room or room < 1:
            raise BadRequest(
                400,
                "BadRequestError",
                f"This model's maximum context length is {max_model_len} tokens. However, you requested {asked} "
                f"output tokens and your prompt contains {self.prompt_tokens} input tokens.",
            )
        return asked


def read_completion(exchange: Exchange, names: Sequence[str], max_model_len: int, number: int) -> Completion:
    """Return the completion that a request asks for; ``names`` of the model. Raises BadRequest."""
    try:
        document = json.loads(exchange.request.body)
    except ValueError as error:
        raise BadRequest(400, "Bad Request", f"JSON decode error: {error}") from error
    if not isinstance(document, dict):
        raise BadRequest(400, "Bad Request", "Input should be a valid dictionary")
    model = document.get("model", names[0])
    if model not in names:
        raise BadRequest(404, "NotFoundError", f"The model `{model}` does not exist.")
    if "input" in document:
        document = {"prompt": document["input"], "max_tokens": 1}
    chat = exchange.request.path == "/v1/chat/completions"
    return Completion(exchange, number, str(model), Wanted(document, chat=chat, max_model_len=max_model_len))


def _prompt(document: Mapping[str, object], *, chat: bool) -> str:
    if chat:
        messages = document.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
            raise BadRequest(400, "Bad Request", "messages: Field required, a list of messages")
        contents = [message.get("content") for message in messages]
        return "\n".join(content if isinstance(content, str) else json.dumps(content) for content in contents)
    prompt = document.get("prompt")
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt:
        return " ".join(str(part) for part in prompt)
    raise BadRequest(400, "Bad Request", "prompt: Field required, a string or a list")


def _word(seed: int, position: int) -> str:
    return " " + _WORDS[zlib.crc32(b"%d.%d" % (seed, position)) % len(_WORDS)]
