"""A fleet as the text of a fleet file, whatever format it came from. Decoding the text gives the same pools."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import tomli_w
from msgspec import Struct, structs, to_builtins

from gpuward.config.fleet import Fleet, Pool, Remark
from gpuward.policy.worker.ladder import effective
from gpuward.policy.worker.life import LadderStep

_ALWAYS_WRITTEN = frozenset({"engine", "model", "workers"})
_WIDTH = 110


def fleet_to_toml(fleet: Fleet) -> str:
    """Return the fleet file, the fleet's warnings as comments above it.

    Keys at their default are left out, except engine, model, workers and the share of memory that a GPU worker
    claims: what was implied when the fleet was read is stated from here on.
    """
    tables = {pool.name: _pool_table(pool) for pool in fleet.pools}
    return _comments(fleet.warnings) + tomli_w.dumps({"pool": tables})


def fix(pool: Pool, steps: Iterable[LadderStep]) -> str:
    """Return the keys that make the steps of a worker's ladder part of the fleet file; empty without steps."""
    smaller = effective(pool, steps)
    table = _differing(smaller, pool, frozenset())
    return tomli_w.dumps({"pool": {pool.name: table}}) if table else ""


def _pool_table(pool: Pool) -> dict[str, object]:
    stated = _ALWAYS_WRITTEN | ({"gpu_memory_utilization"} if pool.device_count else frozenset())
    table = _differing(pool, Pool(name=pool.name), stated)
    for key, record in (("restart", pool.restart), ("on-cause", pool.on_cause), ("liveness", pool.liveness)):
        table.pop(key, None)
        if stated_keys := _differing(record, type(record)(), frozenset()):
            table[key] = stated_keys
    return table


def _differing(record: Struct, default: Struct, stated: frozenset[str]) -> dict[str, object]:
    values = {info.encode_name: (info.name, getattr(record, info.name)) for info in structs.fields(record)}
    return {
        key: to_builtins(value)
        for key, (name, value) in values.items()
        if value is not None and (name in stated or value != getattr(default, name))
    }


def _comments(warnings: Iterable[Remark]) -> str:
    lines: list[str] = []
    for remark in warnings:
        sentence = "".join(char if char.isprintable() else " " for char in f"{remark.code}: {remark.message}")
        lines += textwrap.wrap(sentence, _WIDTH, initial_indent="# ", subsequent_indent="#   ")
    return "".join(f"{line}\n" for line in lines) + ("\n" if lines else "")
