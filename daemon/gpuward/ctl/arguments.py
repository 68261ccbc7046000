"""What all commands of gpuctl share on the command line."""

from __future__ import annotations

import argparse

from gpuward.ctl.screen import COLORS, FORMATS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuward.control.client import Client
    from gpuward.ctl.screen import Screen

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Command:
    """One verb: what it takes, and what it does with it, returning the exit code."""

    def __init__(
        self,
        arguments: Callable[[argparse.ArgumentParser], None],
        run: Callable[[argparse.Namespace, Client, Screen], int],
    ) -> None:
        self.arguments = arguments
        self.run = run


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that stand before or after every verb."""
    parser.add_argument(
        "--socket",
        metavar="PATH",
        help="control socket ($GPUWARD_SOCKET, /run/gpuward/control.sock, your own daemon's)",
    )
    parser.add_argument("-o", "--output", choices=FORMATS, default="table", help="what to print (table)")
    parser.add_argument("--color", choices=COLORS, default="auto", help="auto: on a terminal, unless $NO_COLOR is set")
    parser.add_argument("--no-headers", action="store_true", help="tables without header lines")


def waiting_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of commands that take a while."""
    parser.add_argument("--no-wait", action="store_true", help="return at once; the daemon goes on")
    parser.add_argument(
        "--timeout", type=seconds, metavar="S", help="stop waiting after S seconds, exit 124; the daemon goes on"
    )


def seconds(text: str) -> float:
    """Return a duration in seconds from ``90``, ``90s``, ``1.5m`` or ``2h``; argparse's error where it is none."""
    number, unit_s = (text[:-1], _UNITS_S[text[-1]]) if text[-1:] in _UNITS_S else (text, 1.0)
    try:
        value = float(number) * unit_s
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; give seconds above 0, for example 30, 5m or 1h")
    return value


def count(text: str) -> int:
    """Return a whole number from 0 to a million; argparse's error where it is none."""
    if not text.isascii() or not text.isdecimal() or int(text) > 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 1000000")
    return int(text)
