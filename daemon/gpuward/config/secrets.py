"""Which settings are secrets, by their names; and text in which their values are masked. Pure.

Masked is what is shown or kept for showing. What a worker is started with is not: it needs the values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from gpuward.config.fleet import Pool

MASK: Final = "***"
VALUE_CHARS_MIN: Final = 4
"""A shorter value would be masked all over a text in which it means nothing."""

_NAME: Final = re.compile(
    r"(?:^|[_-])(?:api-?key|key|token|secret|passphrase|credential|auth)s?(?:$|[_-])|password|passwd", re.IGNORECASE
)
_NOT_SECRET: Final = re.compile(r"(?:^|[_-])(?:max|num|len|tokens|limit)(?:$|[_-])|file$|path$|_id$", re.IGNORECASE)
"""``max-num-batched-tokens``, ``ssl-keyfile``, ``token-limit``, ``AWS_ACCESS_KEY_ID``: numbers, files, names."""

_ASSIGNED: Final = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>.+)", re.DOTALL)
"""``HF_TOKEN=...`` as `env` and shells take it."""


def is_secret(name: str) -> bool:
    """Whether a variable, a key or a flag of this name holds a secret."""
    return bool(_NAME.search(name)) and not _NOT_SECRET.search(name)


def masked_words(words: Iterable[str]) -> list[str]:
    """Words of a command line with the values of secret flags masked, ``--flag VALUE`` and ``--flag=VALUE`` alike."""
    shown = []
    follows = False
    for word in words:
        flag, equals, _ = word.partition("=")
        if word.startswith("-"):
            follows = is_secret(flag.lstrip("-")) and not equals
            shown.append(f"{flag}={MASK}" if equals and is_secret(flag.lstrip("-")) else word)
        else:
            shown.append(MASK if follows else _masked_assignment(word))  # vLLM takes several keys after one flag
    return shown


def _masked_assignment(word: str) -> str:
    assigned = _ASSIGNED.fullmatch(word)
    return f"{assigned['name']}={MASK}" if assigned is not None and is_secret(assigned["name"]) else word


def masked_value(name: str, value: object) -> object:
    """A setting as it may be shown: tables and lists with their secrets masked."""
    if isinstance(value, Mapping):
        return {key: masked_value(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return masked_words(value)
    return MASK if isinstance(value, str) and is_secret(name.rpartition(".")[2]) else value


def secrets_of(pool: Pool) -> frozenset[str]:
    """The values of a pool that are secrets."""
    named = (value for name, value in pool.env.items() if is_secret(name))
    return frozenset(value for value in (*named, *_in_words((*pool.command, *pool.extra_args))) if _tells(value))


def secrets_in(environment: Mapping[str, str]) -> frozenset[str]:
    """The values of an environment that are secrets."""
    return frozenset(value for name, value in environment.items() if is_secret(name) and _tells(value))


def masked(text: str, secrets: Iterable[str]) -> str:
    """Text without these values; the longest first, since one may hold another."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def _in_words(words: tuple[str, ...]) -> Iterator[str]:
    for word, shown in zip(words, masked_words(words), strict=True):
        if shown == MASK:
            yield word
        elif shown != word:
            yield word.removeprefix(shown.removesuffix(MASK))


def _tells(value: str) -> bool:
    return len(value) >= VALUE_CHARS_MIN
