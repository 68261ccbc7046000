"""Any command as a worker: placeholders filled in, readiness by URL, by log or by time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from gpuward.config.fleet import Pool
from gpuward.config.patterns import BadPattern, compiled
from gpuward.engines import programs
from gpuward.engines.launch import CannotLaunch
from gpuward.host.address import Readiness, address

ALIVE_BY_DEFAULT_S: Final = 1.0
"""A command that says nothing of its readiness counts as ready when it has lived this long."""

PLACEHOLDER: Final = re.compile(r"\{\{|\}\}|\{(?P<name>[a-z]*)\}|[{}]")


def fill(text: str, values: Mapping[str, str]) -> str:
    """Return ``text`` with ``{name}`` replaced and ``{{`` ``}}`` as braces; CannotLaunch at any other brace."""

    def replacement(match: re.Match[str]) -> str:
        if match[0] in {"{{", "}}"}:
            return match[0][0]
        value = values.get(match["name"] or "")
        if value is None:
            known = ", ".join(f"{{{name}}}" for name in values)
            raise CannotLaunch(f"{match[0]!r} in {text!r} is not a placeholder; there are {known}, a brace is '{{{{'")
        return value

    return PLACEHOLDER.sub(replacement, text)


def words(pool: Pool, env: Mapping[str, str], values: Mapping[str, str]) -> tuple[str, ...]:
    """Return the command with its program as a path; CannotLaunch where there is none."""
    if not pool.command:
        raise CannotLaunch(f"pool '{pool.name}' has no command; set 'command' to a list of words")
    name, *rest = (fill(word, values) for word in (*pool.command, *pool.extra_args))
    path = programs.find(name, env)
    if path is None:
        raise CannotLaunch(f"cannot start pool '{pool.name}': no program '{name}' in PATH; write its whole path")
    return (path, *rest)


def readiness(pool: Pool, values: Mapping[str, str]) -> Readiness:
    """Return how this command proves that it is ready; CannotLaunch where URL or pattern cannot be used."""
    if pool.ready_url is not None:
        url = fill(pool.ready_url, values)
        try:
            return Readiness(url=url, port=address(url).port)
        except ValueError as error:
            raise CannotLaunch(f"pool '{pool.name}' has a ready-url that cannot be asked: {error}") from error
    if pool.ready_log is not None:
        try:
            compiled(pool.ready_log)
        except BadPattern as error:
            raise CannotLaunch(f"pool '{pool.name}' has ready-log {pool.ready_log!r}: {error}") from error
        return Readiness(log_pattern=pool.ready_log)
    return Readiness(after_s=ALIVE_BY_DEFAULT_S if pool.ready_after_s is None else pool.ready_after_s)
