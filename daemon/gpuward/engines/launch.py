"""What one start of a worker needs, as records. Nothing here starts anything."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

Version = tuple[int, int, int]
"""Of an engine: major, minor, patch."""

URL: Final = re.compile(r"https?://(?P<host>\[[0-9a-fA-F:.]+\]|[^/:\s\[\]]+)(?::(?P<port>[0-9]{1,5}))?(?P<path>/\S*)?")


class CannotLaunch(Exception):
    """This worker cannot be started as configured; the message is a sentence with the way out.

    ``kind``: launch, or pin where only the GPUs of this moment are in the way.
    """

    def __init__(self, message: str, kind: str = "launch") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Address:
    """Where an http URL points; an IPv6 ``host`` without its brackets. ``key``: the API key to ask with, or none."""

    host: str
    port: int
    path: str
    tls: bool = False
    key: str = field(default="", repr=False)


def address(url: str) -> Address:
    """Return the parts of an http URL; ValueError where it is none."""
    match = URL.fullmatch(url)
    tls = url.startswith("https:")
    port = int(match["port"] or (443 if tls else 80)) if match is not None else 0
    if match is None or port > 65535:
        raise ValueError(f"{url!r} is not http://HOST:PORT/PATH")
    return Address(match["host"].strip("[]"), port, match["path"] or "/", tls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """How a worker proves that it is ready; exactly one of ``url``, ``log_pattern`` and ``after_s`` is set.

    ``url`` answers 200, its ``port`` is listened on by the run's own processes, and where ``model`` is set
    ``/v1/models`` beside it names that model; ``key``: the API key to ask with, empty for none. ``log_pattern`` is a
    regular expression found in a line of output.
    ``after_s``: still alive so many seconds after the start.
    """

    url: str | None = None
    port: int | None = None
    model: str | None = None
    key: str = field(default="", repr=False)
    log_pattern: str | None = None
    after_s: float | None = None


def address_of(readiness: Readiness) -> Address:
    """Where a worker with a URL is asked, and with which key; ValueError where it has none."""
    if readiness.url is None:
        raise ValueError("this readiness has no URL to ask")
    return replace(address(readiness.url), key=readiness.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One start of a worker.

    ``argv[0]`` is a path, not a name to be looked up. ``env`` is the complete environment, it may hold secrets.
    ``port`` is the port that the worker was given, None where it has none. ``sockets_variable`` names a
    directory of the run's own in which the engine makes sockets; empty where it makes none or the pool names one.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    working_directory: str | None
    port: int | None
    readiness: Readiness
    sockets_variable: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """A device set in rank order: PCI-order indices as they are now, and the UUIDs of the same GPUs."""

    indices: tuple[int, ...] = ()
    uuids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostContext:
    """What every start on this host shares.

    ``python`` is the absolute path of the interpreter that has gpuward. ``sim_env`` tells workers of a simulated host
    where its GPUs are; it is empty on a real one.
    """

    python: str
    simulated: bool
    inherited_env: Mapping[str, str] = field(repr=False)
    sim_env: Mapping[str, str] = field(default_factory=dict)
