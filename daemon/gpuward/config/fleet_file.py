"""Fleet files in TOML. Decoding only: no file is read, and of the disk only whether named paths exist is asked."""

from __future__ import annotations

import difflib
import os.path
from collections.abc import Mapping

from gpuward.config.decode import Section, Table, shown, unknown_key
from gpuward.config.elsewhere import is_like_a_table, quotes_needed
from gpuward.config.errors import ConfigError
from gpuward.config.fleet import Fleet, Remark
from gpuward.config.model_path import PathExists
from gpuward.config.pool_rules import POOL_NAME
from gpuward.config.pools import PoolTable, Surroundings, decode_defaults, decode_pools
from gpuward.config.toml_text import parse_toml

_MERGED_DEEP = ("env", "restart", "on-cause", "liveness")
_TABLES = ("defaults", "pool")


def decode_fleet_toml(text: str, *, file: str, directory: str, path_exists: PathExists = os.path.exists) -> Fleet:
    """Return the fleet that ``text`` describes; ConfigError with all that is wrong in it.

    ``file`` is for complaints, ``directory`` (absolute) is where relative paths start.
    """
    document = parse_toml(text, file=file)
    found = [_unknown(key, value) for key, value in document.items() if key not in _TABLES]
    defaults = _defaults(document.get("defaults", {}), found)
    tables = _pool_tables(document.get("pool", {}), defaults, found)
    if not tables and not found:
        raise ConfigError(file, [_no_pool()])
    return decode_pools(tables, Surroundings(file, directory, path_exists), problems=found)


def _unknown(key: str, value: object) -> Remark:
    a_pool = isinstance(value, Mapping) and not difflib.get_close_matches(key[:60], _TABLES, n=1)
    where = f"unknown table; did you mean [pool.{key}]?" if a_pool and POOL_NAME.fullmatch(key) else ""
    return unknown_key(key, value, _TABLES, Section("top level"), where=where)


def _defaults(table: object, found: list[Remark]) -> Table:
    section = Section("[defaults]")
    if not isinstance(table, Mapping):
        found.append(section.bad_value("defaults", table, "must be a table; write [defaults]"))
        return {}
    return decode_defaults(table, section, found)


def _pool_tables(pools: object, defaults: Table, found: list[Remark]) -> list[PoolTable]:
    if not isinstance(pools, Mapping):
        found.append(Section("top level").bad_value("pool", pools, "must be a table per pool; write [pool.NAME]"))
        return []
    tables = []
    for name, table in pools.items():
        section = Section(f"pool '{name}'", name)
        if isinstance(table, Mapping) and table and all(_is_part_of_a_name(*one) for one in table.items()):
            rest = next(iter(table))
            found.append(section.remark("unknown-key", f"{shown({rest: table[rest]})}: {quotes_needed(name, rest)}"))
        elif isinstance(table, Mapping):
            inherited = defaults.keys() - table.keys()
            tables.append(PoolTable(name=name, table=_merged(defaults, table), section=section, inherited=inherited))
        else:
            found.append(
                section.remark(
                    "bad-value",
                    f"pool.{name} = {shown(table)}: must be a table of keys; write [pool.NAME] above its keys",
                )
            )
    return tables


def _is_part_of_a_name(key: str, value: object) -> bool:
    """Whether a pool's key is what TOML makes of a name with a dot: a table where a pool has none."""
    return isinstance(value, Mapping) and not is_like_a_table(key)


def _merged(defaults: Table, table: Table) -> Table:
    """A pool's own keys over the defaults; tables are merged key by key."""
    merged = {**defaults, **table}
    for key in _MERGED_DEEP:
        common, own = defaults.get(key), table.get(key)
        if isinstance(common, Mapping) and isinstance(own, Mapping):
            merged[key] = {**common, **own}
    return merged


def _no_pool() -> Remark:
    message = 'no pool in this file: write [pool.NAME], and under it engine = "vllm" and model = "DIRECTORY or name"'
    return Remark(code="bad-value", pool=None, message=message)
