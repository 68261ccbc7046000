"""Commands about the daemon and gpuctl themselves: ping, version."""

from __future__ import annotations

import time

from gpuward import __version__
from gpuward.control.client import Unreachable
from gpuward.control.protocol import EXIT_OK, PROTOCOL_VERSION
from gpuward.ctl.arguments import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from gpuward.control.client import Client
    from gpuward.control.documents import Pong
    from gpuward.ctl.screen import Screen

VERSION_PATIENCE_S = 2.0


def no_arguments(parser: ArgumentParser) -> None:
    """Neither takes any."""


def ping(args: Namespace, client: Client, screen: Screen) -> int:
    """``gpuctl ping``: whether the daemon answers, and how fast (connecting included)."""
    del args
    asked_s = time.perf_counter()
    pong: Pong = client.call("ping")
    took_s = time.perf_counter() - asked_s
    draw = lambda: screen.line(f"gpuward {pong['version']}, pid {pong['pid']}, answers in {took_s * 1000:.1f} ms")  # noqa: E731
    document = {**pong, "took_s": took_s}
    screen.listing(document, [document], [str(pong["pid"])], draw)
    return EXIT_OK


def version(args: Namespace, client: Client, screen: Screen) -> int:
    """``gpuctl version``: of both ends; a daemon that does not answer is no failure here."""
    del args
    daemon: Pong | None = None
    why = ""
    try:
        daemon = client.call("ping", timeout_s=VERSION_PATIENCE_S)
    except Unreachable as error:
        why = str(error)
    document = {
        "client": {"version": __version__, "protocol": PROTOCOL_VERSION},
        "daemon": {key: daemon[key] for key in ("version", "protocol", "pid")} if daemon is not None else None,
    }

    def draw() -> None:
        screen.line(f"gpuctl   {__version__} (protocol {PROTOCOL_VERSION})")
        screen.line(f"gpuward  {daemon['version']} (protocol {daemon['protocol']})" if daemon else f"gpuward  {why}")

    screen.listing(document, [document], [__version__], draw)
    return EXIT_OK


COMMANDS = {"ping": Command(no_arguments, ping), "version": Command(no_arguments, version)}
