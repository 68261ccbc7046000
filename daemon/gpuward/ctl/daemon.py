"""Commands about the daemon's life: daemon reexec, daemon detach."""

from __future__ import annotations

import time

from gpuward.control.client import Refused, Unreachable
from gpuward.control.protocol import EXIT_FAILED, EXIT_OK, EXIT_TIMED_OUT
from gpuward.ctl.arguments import Command, seconds
from gpuward.ctl.text import counted
from gpuward.ctl.trouble import Trouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from gpuward.control.client import Client
    from gpuward.control.documents import Detached, Pong, Reexeced
    from gpuward.ctl.screen import Screen

ASK_WITHIN_S = 60.0
GONE_WITHIN_S = 20.0
LOOK_AGAIN_S = 0.05


def daemon_arguments(parser: ArgumentParser) -> None:
    """Arguments of ``daemon``."""
    parser.add_argument(
        "what",
        choices=("reexec", "detach"),
        help="reexec: become the version that is installed now, same pid; detach: end. Workers go on in both",
    )
    parser.add_argument(
        "--timeout", type=seconds, default=60.0, metavar="S", help="reexec: exit 124 where it is not back after S (60)"
    )


def daemon(args: Namespace, client: Client, screen: Screen) -> int:
    """``gpuctl daemon``."""
    return _reexec(args, client, screen) if args.what == "reexec" else _detach(client, screen)


def _detach(client: Client, screen: Screen) -> int:
    answer: Detached = client.call("detach", timeout_s=ASK_WITHIN_S)
    _until_gone(client, answer["pid"], time.monotonic() + GONE_WITHIN_S)
    kept = f"{counted(len(answer['workers']), 'worker')} kept running; the next daemon adopts them"
    screen.listing(
        answer, [answer], [str(answer["pid"])], lambda: screen.sentence(f"daemon {answer['pid']} has ended; {kept}")
    )
    return EXIT_OK


def _until_gone(client: Client, pid: int, until_s: float) -> None:
    """Wait until the daemon answers no more; Trouble, exit 1, where it still does."""
    while time.monotonic() < until_s:
        try:
            if client.call("ping", timeout_s=2.0)["pid"] != pid:
                return  # the next one is there already
        except (Unreachable, Refused):
            return
        time.sleep(LOOK_AGAIN_S)
    raise Trouble(f"daemon {pid} was asked to end and still answers", EXIT_FAILED)


def _reexec(args: Namespace, client: Client, screen: Screen) -> int:
    before: Pong = client.call("ping")
    answer: Reexeced = client.call("reexec", timeout_s=ASK_WITHIN_S)
    asked_s = time.monotonic()
    after = _new_life(client, before["epoch"], asked_s + args.timeout)
    took_s = time.monotonic() - asked_s
    document = {**answer, "version": after["version"], "pid": after["pid"], "took_s": took_s}
    line = (
        f"re-executed ({answer['from_version']} -> {after['version']}) in {took_s:.1f} s, pid {after['pid']}; "
        f"{counted(len(answer['workers']), 'worker')} kept running"
    )
    screen.listing(document, [document], [after["version"]], lambda: screen.sentence(line))
    return EXIT_OK


def _new_life(client: Client, epoch: int, until_s: float) -> Pong:
    """Ask until another life of the daemon answers and takes commands."""
    why = "it still answers as before"
    while time.monotonic() < until_s:
        try:
            pong: Pong = client.call("ping", timeout_s=2.0)
            if pong["epoch"] != epoch and pong["open"]:
                return pong
        except (Unreachable, Refused) as error:
            why = str(error)
            client.close()
        time.sleep(LOOK_AGAIN_S)
    raise Trouble(f"the daemon is not back yet: {why}", EXIT_TIMED_OUT)


COMMANDS = {"daemon": Command(daemon_arguments, daemon)}
