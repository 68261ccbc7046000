"""Where a key belongs that stands where gpuward does not know it: in another table, or on vLLM's command line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from typing import Final

from gpuward.config.vllm_arguments import is_vllm_option

TABLES: Final = ("env", "restart", "on-cause", "liveness")
"""Keys of a pool that are tables."""


def elsewhere(key: str, value: object, pool: str | None, of_one_pool: Collection[str], known: Collection[str]) -> str:
    """Say where an unknown key of a pool, or of the defaults (``pool`` is None), belongs; empty where nobody knows."""
    spelled = key.replace("_", "-").lower()
    if spelled in of_one_pool:
        return f"{spelled} belongs to one pool and cannot be a default; write it under [pool.NAME]"
    if spelled in known:
        return ""  # only its spelling is wrong
    if is_vllm_option(spelled.removeprefix("--")):
        words = json.dumps(_words(spelled.removeprefix("--"), value), ensure_ascii=False)
        return f"not a key of gpuward; options of vLLM go into extra-args = {words}"
    if pool is not None and isinstance(value, Mapping) and not is_like_a_table(spelled):
        return quotes_needed(pool, key)
    return ""


def is_like_a_table(key: str) -> bool:
    """Whether a key is, or nearly is, one of those that are tables."""
    return bool(difflib.get_close_matches(key[:60], TABLES, n=1))


def quotes_needed(pool: str, rest: str) -> str:
    """Say how a pool is written whose name TOML has taken apart at its dot."""
    return f'a name with a dot needs quotes: [pool."{pool}.{rest}"]'


def _words(option: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return [f"--{option}", *map(str, value[:4])]
    return [f"--{option}", json.dumps(value, default=str) if isinstance(value, list | dict) else str(value)[:60]]
