"""Where a worker is asked over HTTP, and what proves that it is ready: records only."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Final

URL: Final = re.compile(r"https?://(?P<host>\[[0-9a-fA-F:.]+\]|[^/:\s\[\]]+)(?::(?P<port>[0-9]{1,5}))?(?P<path>/\S*)?")


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
