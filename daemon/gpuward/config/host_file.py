"""Host files in TOML. Decoding only: no directory is looked at, no socket opened."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
from msgspec import structs

from gpuward.config.decode import Section, decode_table, unknown_key
from gpuward.config.errors import ConfigError
from gpuward.config.fleet import Remark
from gpuward.config.host import MIB, HostSettings, SignatureRule
from gpuward.config.patterns import compiled
from gpuward.config.rules import (
    Rule,
    above,
    absolute_path,
    arguments,
    at_least,
    between,
    devices,
    lines_of_text,
    printable_text,
    regular_expression,
)
from gpuward.config.toml_text import parse_toml

SOCKET_PATH_MAX_BYTES: Final = 107
"""Longest path that fits ``sockaddr_un`` (Linux unix(7): 108 bytes with the NUL)."""

_RULES: Final[Mapping[str, Mapping[str, Rule]]] = {
    "control": {
        "socket": absolute_path("/run/gpuward/control.sock"),
        "group": printable_text,
        "admins": lines_of_text,
        "max_message_bytes": between(4096, 64 * MIB),
    },
    "directories": dict.fromkeys(("runtime", "state", "logs", "leases"), absolute_path("/var/lib/gpuward")),
    "inventory": {
        "exclude": lambda value: devices(value) if value else None,
        "sample_interval_s": between(0.2, 60),
        "deadline_s": between(0.5, 300),
    },
    "ports": {"first": between(1, 65535), "last": between(1, 65535), "per_worker": between(16, 65535)},
    "limits": {
        "claims_per_gpu": above(0, most=1),
        "memory_margin_bytes": at_least(0),
        "release_timeout_s": above(0, most=24 * 3600),
        "log_max_bytes": at_least(64 * 1024),
        "log_keep_runs": between(1, 1000),
    },
    "watch": {
        "slack_bytes": at_least(0),
        "slack_ratio": between(0, 1),
        "growth_bytes": at_least(0),
        "pressure_ratio": between(0, 0.5),
        "samples": between(1, 1000),
        "action_pause_s": between(1, 7 * 24 * 3600),
    },
    "xid": {},
    "endpoints": {
        "directory": absolute_path("/run/gpuward/endpoints"),
        "on_change": arguments,
        "settle_s": between(0, 300),
    },
    "logging": {},
}


_SIGNATURE_RULES: Final[Mapping[str, Rule]] = {
    "contains": printable_text,
    "says": printable_text,
    "pattern": regular_expression,
}


def decode_host_toml(text: str, *, file: str) -> HostSettings:
    """Return the settings that ``text`` gives, defaults for the rest; ConfigError with all that is wrong in it.

    An empty file is right: every key has a default.
    """
    document = parse_toml(text, file=file)
    sections = {info.encode_name: info for info in structs.fields(HostSettings)}
    found: list[Remark] = []
    right: dict[str, object] = {}
    for name, table in document.items():
        section = Section(f"[{name}]")
        if name == "signatures":
            right[name] = _signatures(table, found)
        elif name not in sections:
            found.append(unknown_key(name, table, sections, Section("top level")))
        elif isinstance(table, Mapping):
            right[name] = decode_table(table, sections[name].type, section, _RULES[name], found)
        else:
            found.append(section.bad_value(name, table, f"must be a table; write [{name}] above its keys"))
    settings = msgspec.convert(right, HostSettings)
    found += _problems_between(settings)
    if found:
        raise ConfigError(file, found)
    return settings


def _signatures(tables: object, found: list[Remark]) -> list[dict[str, object]]:
    """The tables of ``[[signatures]]`` that are right."""
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        found.append(
            Section("top level").bad_value("signatures", tables, "must be tables; write [[signatures]] above each")
        )
        return []
    right = []
    for number, table in enumerate(tables, 1):
        section = Section(f"[[signatures]] {number}")
        before = len(found)
        keys = decode_table(table, SignatureRule, section, _SIGNATURE_RULES, found)
        found += (
            section.remark("bad-value", f"{key}: is missing")
            for key in ("cause", "contains", "says")
            if key not in table
        )
        if len(found) == before:
            found += _unfilled(keys, section)
            right.append(keys)
    return right if not found else []


def _unfilled(keys: Mapping[str, object], section: Section) -> Iterator[Remark]:
    """Words in braces that no named group of the pattern fills."""
    pattern = keys.get("pattern")
    groups = compiled(str(pattern)).groupindex if pattern else {}
    for key in ("says", "hint"):
        for name in re.findall(r"\{([^}]*)\}", str(keys.get(key, ""))):
            if name not in groups:
                yield section.bad_value(
                    key, keys[key], f"{{{name}}} is no named group of pattern; write (?P<{name}>...) there"
                )


def _problems_between(settings: HostSettings) -> Iterator[Remark]:
    """Values that are right alone and not together."""
    ports = settings.ports
    if ports.first > ports.last:
        yield Section("[ports]").bad_value("first", ports.first, f"must not be above last = {ports.last}")
    elif ports.last - ports.first + 1 < ports.per_worker:
        room = ports.last - ports.first + 1
        yield Section("[ports]").bad_value(
            "per-worker",
            ports.per_worker,
            f"{ports.first} to {ports.last} are {room} ports, less than one worker needs",
        )
    if settings.endpoints.on_change and settings.endpoints.directory is None:
        yield Section("[endpoints]").bad_value(
            "on-change", list(settings.endpoints.on_change), "nothing is written without directory; name one"
        )
    if settings.control.socket is not None:
        yield from _too_long("[control]", "socket", settings.control.socket, settings.control.socket)
    elif settings.directories.runtime is not None:
        socket = f"{settings.directories.runtime}/control.sock"
        yield from _too_long("[directories]", "runtime", settings.directories.runtime, socket)


def _too_long(section: str, key: str, value: str, socket: str) -> Iterator[Remark]:
    """The control socket and the event socket beside it, which has its name with ``.pub`` for ``.sock``."""
    longest = max((socket, socket.removesuffix(".sock") + ".pub"), key=lambda path: len(path.encode()))
    size = len(longest.encode())
    if size > SOCKET_PATH_MAX_BYTES:
        yield Section(section).bad_value(
            key,
            value,
            f"{longest} has {size} bytes, a socket path may have {SOCKET_PATH_MAX_BYTES}; choose a shorter one",
        )
