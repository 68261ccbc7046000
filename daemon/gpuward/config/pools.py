"""From tables of keys to a fleet: the one road for every file format, so that all are held to the same rules."""

from __future__ import annotations

import os.path
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from gpuward.config.decode import Section, Table, decode_table
from gpuward.config.drain import drain_problems
from gpuward.config.elsewhere import elsewhere
from gpuward.config.errors import ConfigError
from gpuward.config.fleet import Fleet, Liveness, OnCause, Pool, Remark, RestartPolicy
from gpuward.config.model_path import PathExists, absolute_from, locate_model, locate_program
from gpuward.config.pool_rules import (
    LIVENESS_RULES,
    POOL_NAME,
    POOL_RULES,
    RESTART_RULES,
    dependency_problems,
    env_problems,
    pool_problems,
    restart_problems,
)
from gpuward.config.rules import Rule, size_bytes

POOLS_MAX = 256

SIMULATED_MODEL = "simulated-model"
"""What a simulated worker serves where its pool names no model."""

_OF_ONE_POOL = frozenset(
    {"name", "command", "gpus", "first_gpu", "port", "depends_on", "ready_url", "ready_log", "ready_after_s"}
)
"""Keys that make no sense for all pools at once."""

_KEYS = frozenset(info.encode_name for info in msgspec.structs.fields(Pool))

_INNER: Mapping[str, tuple[type[msgspec.Struct], Mapping[str, Rule]]] = {
    "restart": (RestartPolicy, RESTART_RULES),
    "on-cause": (OnCause, {}),
    "liveness": (Liveness, LIVENESS_RULES),
}
"""Keys of a pool that are tables of keys."""

_VLLM_ONLY = ("model", "max-model-len", "executable")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTable:
    """One pool as a file gives it; keys in the spelling of fleet files, ``section`` knows what the file called them.

    ``inherited`` holds the keys that come from defaults: no reproach for those that this engine does not use.
    """

    name: str
    table: Table
    section: Section
    inherited: Collection[str] = field(default=())


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The file's name, for complaints, and how its relative paths are looked up. ``directory`` is absolute."""

    file: str
    directory: str
    path_exists: PathExists = os.path.exists


def decode_pools(
    tables: Sequence[PoolTable],
    around: Surroundings,
    *,
    problems: Sequence[Remark] = (),
    warnings: Sequence[Remark] = (),
) -> Fleet:
    """Return the fleet; ConfigError with every problem there is, ``problems`` (of the file as a whole) first."""
    found = list(problems)
    if len(tables) > POOLS_MAX:
        sentence = f"{len(tables)} pools; one host has at most {POOLS_MAX}"
        raise ConfigError(around.file, [*found, Remark(code="bad-value", pool=None, message=sentence)])
    remarks = list(warnings)
    pools: dict[str, Pool] = {}
    for table in tables:
        pool = _decode_pool(table, found)
        if pool is not None:
            located, doubts = _located(pool, table.section, around)
            pools[pool.name] = located
            remarks += [*doubts, *_doubts(located, table)]
    remarks += _default_utilizations([(pools[one.name], one) for one in tables if one.name in pools])
    if len(pools) == len(tables):
        found += dependency_problems(pools, {table.name: table.section for table in tables})
    if found:
        raise ConfigError(around.file, found)
    return Fleet(pools=tuple(pools.values()), warnings=tuple(remarks))


def decode_defaults(table: Table, section: Section, found: list[Remark]) -> dict[str, object]:
    """Return those keys of a table of defaults that any pool may have."""
    right = _right_keys(table, section, found, not_keys=_OF_ONE_POOL)
    return {key: table[key] for key in right}


def _decode_pool(table: PoolTable, found: list[Remark]) -> Pool | None:
    """Return the pool with its right keys only; None where the very name is wrong."""
    section = table.section
    if not POOL_NAME.fullmatch(table.name):
        found.append(
            section.remark(
                "bad-value", "the name must be 1 to 63 of A-Z a-z 0-9 _ . - and start with a letter or a digit"
            )
        )
        return None
    right = _right_keys(table.table, section, found, not_keys={"name"})
    pool = msgspec.convert({**right, "name": table.name}, Pool)
    if pool.engine == "simulated" and pool.model is None:
        pool = msgspec.structs.replace(pool, model=SIMULATED_MODEL)
    if right.get("engine") == table.table.get("engine"):
        found += pool_problems(pool, table.table, section)
        found += drain_problems(pool, section)
    if right.get("restart") == table.table.get("restart"):
        found += restart_problems(pool, section)
    return pool


def _right_keys(table: Table, section: Section, found: list[Remark], *, not_keys: Collection[str]) -> dict[str, object]:
    table = _in_bytes(table, section, found)
    inner = {key for key in (*_INNER, "env") if isinstance(table.get(key), Mapping)}
    plain = {key: value for key, value in table.items() if key not in inner}
    of_one_pool = {key.replace("_", "-") for key in not_keys if key != "name"}
    right = decode_table(
        plain,
        Pool,
        section,
        POOL_RULES,
        found,
        not_keys=not_keys,
        elsewhere=lambda key, value: elsewhere(key, value, section.pool, of_one_pool, _KEYS),
    )
    for key, (record, rules) in _INNER.items():
        if isinstance(keys := table.get(key), Mapping):
            below = Section(f"{section.label}: {key}", section.pool)
            right[key] = decode_table(keys, record, below, rules, found)
    env = table.get("env")
    if isinstance(env, Mapping):
        wrong = list(env_problems(env, section))
        found += wrong
        if not wrong:
            right["env"] = env
    return right


def _in_bytes(table: Table, section: Section, found: list[Remark]) -> Table:
    """Return the table with its memory-max as a number; text that is no size is left out and remarked on."""
    text = table.get("memory-max")
    if not isinstance(text, str):
        return table
    size = size_bytes(text)
    if size is not None:
        return {**table, "memory-max": size}
    found.append(section.bad_value("memory-max", text, 'must be a number of bytes or a size as "40GiB" or "40GB"'))
    return {key: value for key, value in table.items() if key != "memory-max"}


def _located(pool: Pool, section: Section, around: Surroundings) -> tuple[Pool, list[Remark]]:
    """Make paths absolute; say which do not exist."""
    doubts: list[Remark] = []
    if pool.model is not None and pool.engine == "vllm":
        model, doubt = locate_model(pool.model, around.directory, around.path_exists)
        pool = msgspec.structs.replace(pool, model=model)
        doubts += [section.remark("model-not-found", doubt)] if doubt else []
    if pool.executable is not None:
        program, doubt = locate_program(pool.executable, around.directory, around.path_exists)
        pool = msgspec.structs.replace(pool, executable=program)
        doubts += [section.remark("executable-not-found", f"executable: {doubt}")] if doubt else []
    if pool.command:
        program, doubt = locate_program(pool.command[0], around.directory, around.path_exists)
        pool = msgspec.structs.replace(pool, command=(program, *pool.command[1:]))
        doubts += [section.remark("executable-not-found", f"command: {doubt}")] if doubt else []
    if pool.working_directory is not None:
        there = absolute_from(pool.working_directory, around.directory)
        pool = msgspec.structs.replace(pool, working_directory=there)
    return pool, doubts


def _doubts(pool: Pool, table: PoolTable) -> Iterator[Remark]:
    if pool.engine == "command":
        unused = [key for key in _VLLM_ONLY if key in table.table and key not in table.inherited]
        if unused:
            sentence = f'{", ".join(unused)}: engine "command" does not use it; put it into `command`'
            yield table.section.remark("key-without-effect", sentence)


def _default_utilizations(pools: Sequence[tuple[Pool, PoolTable]]) -> Iterator[Remark]:
    """One warning for all pools that leave the default, however many."""
    left = [one for one in pools if one[0].device_count and "gpu-memory-utilization" not in one[1].table]
    if not left:
        return
    claim = f"each worker claims {left[0][0].gpu_memory_utilization:g} of its GPUs' memory"
    if len(left) == 1:
        yield left[0][1].section.remark("default-utilization", f"gpu-memory-utilization is not given: {claim}")
        return
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    names = ", ".join(pool.name for pool, _ in left[:5])
    sentence = f"gpu-memory-utilization is not given for pools {names}{more}: {claim}"
    yield Remark(code="default-utilization", pool=None, message=sentence)
