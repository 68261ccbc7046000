"""What a pool may say: ranges of its keys, and keys that need or exclude each other. Sums over GPUs are the plan's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from gpuward.config.decode import Section, Table
from gpuward.config.fleet import Pool, Remark
from gpuward.config.rules import (
    Rule,
    above,
    arguments,
    at_least,
    between,
    devices,
    http_url,
    printable_text,
    share_of_one,
)
from gpuward.config.rules import regular_expression as pattern
from gpuward.config.vllm_arguments import flag_of

_SECONDS_MAX: Final = 7 * 24 * 3600.0
"""No wait of this daemon is meant to be longer than a week; beyond that a unit was mistaken."""

MEMORY_MAX_LEAST_BYTES: Final = 64 * 1024**2
"""No engine starts with less; a smaller number was meant in another unit."""

WORKERS_MAX: Final = 10_000
"""Of one pool."""

POOL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")

POOL_RULES: Final[Mapping[str, Rule]] = {
    "model": printable_text,
    "workers": between(0, WORKERS_MAX),
    "gpus_per_worker": between(0, 1024),
    "gpu_memory_utilization": share_of_one,
    "tensor_parallel_size": between(1, 1024),
    "pipeline_parallel_size": between(1, 1024),
    "max_model_len": at_least(1),
    "min_max_model_len": at_least(1),
    "max_parallel_starts": at_least(1),
    "max_unavailable": at_least(1),
    "min_ready_s": between(0, _SECONDS_MAX),
    "gpus": devices,
    "first_gpu": at_least(0),
    "port": between(1, 65535),
    "extra_args": arguments,
    "executable": printable_text,
    "working_directory": printable_text,
    "memory_max": at_least(MEMORY_MAX_LEAST_BYTES),
    "start_timeout_s": above(0, most=_SECONDS_MAX),
    "stop_timeout_s": above(0, most=_SECONDS_MAX),
    "drain_timeout_s": between(0, 24 * 3600),
    "command": arguments,
    "ready_url": http_url,
    "ready_log": pattern,
    "ready_after_s": between(0, _SECONDS_MAX),
}

RESTART_RULES: Final[Mapping[str, Rule]] = {
    "max_failures": between(0, 10_000),
    "window_s": above(0, most=_SECONDS_MAX),
    "delay_first_s": between(0.01, _SECONDS_MAX),
    "delay_max_s": between(0.01, _SECONDS_MAX),
    "reset_after_s": above(0, most=_SECONDS_MAX),
}

LIVENESS_RULES: Final[Mapping[str, Rule]] = {
    "interval_s": between(0.05, 3600),
    "misses": between(1, 1000),
}

_READY_KEYS: Final = ("ready-url", "ready-log", "ready-after-s")
_PLACEHOLDERS: Final = frozenset({"port", "gpus", "worker", "index"})
_BRACES: Final = re.compile(r"\{\{|\}\}|\{(?P<name>[a-z]*)\}|[{}]")
_OWN_VARIABLES: Final = re.compile(
    r"CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|GPUWARD_(?!SIM_).*|GPUWARD_SIM_(CLAIMS|GPUS)"
)
FLAGS_WITH_KEYS: Final[Mapping[str, str]] = {
    "--model": "model",
    "--port": "port",
    "--gpu-memory-utilization": "gpu-memory-utilization",
    "--tensor-parallel-size": "tensor-parallel-size",
    "--pipeline-parallel-size": "pipeline-parallel-size",
    "--max-model-len": "max-model-len",
    "--device-ids": "gpus",
}
"""vLLM's flags that extra-args may not hold: plan, watch and probe go by the key, and the last one of two would win."""

FLAGS_REFUSED: Final[Mapping[str, str]] = {
    "--config": "gpuward does not see what that file sets; write it as keys of the pool and words of extra-args",
    "--headless": 'such a worker serves no HTTP, so nothing proves that it is ready; run it as engine = "command" '
    "with ready-log",
    "--uds": "gpuward asks each worker on a TCP port of 127.0.0.1; drop it, and let clients on this host ask that port",
    "--ssl-cert-reqs": "gpuward has no certificate to show to a worker that asks for one; drop it",
}
"""vLLM's flags with which a worker could never be proved ready, or would be another than planned; and the way out."""


def pool_problems(pool: Pool, stated: Table, section: Section) -> Iterator[Remark]:
    """Keys of one pool that do not go together. ``stated``: what the file gives, right or wrong."""
    yield from _engine_problems(pool, stated, section)
    yield from _gpu_problems(pool, stated, section)
    yield from _readiness_problems(pool, stated, section)
    if pool.port is not None and pool.port + max(0, pool.workers - 1) > 65535:
        yield section.bad_value(
            "port",
            pool.port,
            f"worker {pool.workers - 1} would need port {pool.port + pool.workers - 1}; 65535 is the last",
        )


def restart_problems(pool: Pool, section: Section) -> Iterator[Remark]:
    """Keys of the restart policy that do not go together."""
    if pool.restart.delay_max_s < pool.restart.delay_first_s:
        yield section.remark(
            "bad-value",
            f"restart.delay-max-s = {pool.restart.delay_max_s:g}: must be at least delay-first-s "
            f"= {pool.restart.delay_first_s:g}",
        )


def env_problems(env: Mapping[str, object], section: Section) -> Iterator[Remark]:
    """Variables that a pool may not set, and values that are no text."""
    for name, value in env.items():
        if _OWN_VARIABLES.fullmatch(name):
            yield section.bad_value(
                f"env.{name}", value, "gpuward sets this variable for each worker; name GPUs with `gpus` or `first-gpu`"
            )
        elif not name or "=" in name or "\0" in name:
            yield section.bad_value(f"env.{name}", value, "must be named without '=' and NUL")
        elif not isinstance(value, str):
            yield section.bad_value(f"env.{name}", value, f'must be text; write {name} = "{_as_text(value)}"')
        elif "\0" in value:
            yield section.bad_value(f"env.{name}", value, "must not hold a NUL character")


def dependency_problems(pools: Mapping[str, Pool], sections: Mapping[str, Section]) -> Iterator[Remark]:
    """``depends-on`` that names no pool of the file, or goes in a circle."""
    for pool in pools.values():
        for name in pool.depends_on:
            if name not in pools:
                known = ", ".join(other for other in pools if other != pool.name) or "none"
                yield sections[pool.name].bad_value(
                    "depends-on", list(pool.depends_on), f"there is no pool '{name}'; other pools of this file: {known}"
                )
        circle = _circle_from(pool.name, pools)
        if circle and pool.name == min(circle):
            yield sections[pool.name].bad_value(
                "depends-on",
                list(pool.depends_on),
                f"goes in a circle: {' -> '.join([*circle, pool.name])}; none of them could ever start",
            )


def _engine_problems(pool: Pool, stated: Table, section: Section) -> Iterator[Remark]:
    if pool.engine == "command":
        if "command" not in stated or (pool.command and not pool.command[0].strip()) or stated["command"] == []:
            yield section.remark(
                "bad-value",
                'command: engine "command" needs it; write command = ["/path/to/program", "--port", "{port}"]',
            )
        for key, words in (("command", pool.command), ("extra-args", pool.extra_args)):
            for word in words:
                yield from _placeholder_problems(key, word, section)
        return
    if "command" in stated:
        yield section.bad_value("command", list(pool.command), f'only engine "command" has it, this is "{pool.engine}"')
    if pool.engine == "vllm" and "model" not in stated:
        yield section.remark("bad-value", 'model: engine "vllm" needs it; write model = "DIRECTORY" or "org/name"')
    yield from _flag_problems(pool, section)


def _flag_problems(pool: Pool, section: Section) -> Iterator[Remark]:
    for word in pool.extra_args:
        flag = flag_of(word)
        if flag in FLAGS_WITH_KEYS:
            written = word if flag == word.partition("=")[0] else f"{word} is {flag}, which"
            sentence = f"{written} has a key of its own; set {FLAGS_WITH_KEYS[flag]}"
            yield section.bad_value("extra-args", [word], sentence)
        elif flag in FLAGS_REFUSED:
            yield section.bad_value("extra-args", [word], FLAGS_REFUSED[flag])


def _gpu_problems(pool: Pool, stated: Table, section: Section) -> Iterator[Remark]:
    if pool.gpus and pool.first_gpu is not None:
        yield section.bad_value("first-gpu", pool.first_gpu, "excludes `gpus`; keep one of the two")
    if pool.gpus_per_worker != 0:
        return
    if pool.engine != "command":
        yield section.bad_value(
            "gpus-per-worker",
            0,
            f'must be at least 1: only engine "command" runs without a GPU, this is "{pool.engine}"',
        )
    for key in ("gpus", "first-gpu"):
        if key in stated:
            yield section.bad_value(
                "gpus-per-worker", 0, f"`{key}` names GPUs for workers that get none; drop one of the two"
            )


def _readiness_problems(pool: Pool, stated: Table, section: Section) -> Iterator[Remark]:
    given = [key for key in _READY_KEYS if key in stated]
    if given and pool.engine != "command":
        yield section.remark(
            "bad-value",
            f'{given[0]}: only engine "command" has it; "{pool.engine}" proves readiness by /health and its model',
        )
    elif len(given) > 1:
        yield section.remark("bad-value", f"{' and '.join(given)}: one proof of readiness is enough; keep one")
    if pool.ready_url is not None:
        yield from _placeholder_problems("ready-url", pool.ready_url, section)


def _placeholder_problems(key: str, word: str, section: Section) -> Iterator[Remark]:
    for match in _BRACES.finditer(word):
        if match[0] not in {"{{", "}}"} and match["name"] not in _PLACEHOLDERS:
            yield section.bad_value(
                key,
                word,
                f"{match[0]} is no placeholder; there are {{port}}, {{gpus}}, {{worker}}, {{index}}, a brace is {{{{",
            )


def _circle_from(start: str, pools: Mapping[str, Pool]) -> list[str]:
    """The way from a pool back to itself along ``depends-on``, or nothing."""
    ways: list[list[str]] = [[start]]
    seen = {start}
    while ways:
        way = ways.pop()
        for name in pools[way[-1]].depends_on:
            if name == start:
                return way
            if name in pools and name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return []


def _as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
