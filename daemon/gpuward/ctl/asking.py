"""Says what a command takes away from those who use the workers, and asks on a terminal whether it shall."""

from __future__ import annotations

import sys

from gpuward.control.protocol import EXIT_FAILED
from gpuward.ctl.text import counted, duration
from gpuward.ctl.trouble import Trouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from gpuward.control.documents import Foresight
    from gpuward.ctl.screen import Screen

NAMED = 6


def asking_arguments(parser: ArgumentParser) -> None:
    """Arguments of commands that may stop workers which serve."""
    parser.add_argument("-y", "--yes", action="store_true", help="ask nothing (without a terminal nothing is asked)")
    force_argument(parser)


def force_argument(parser: ArgumentParser) -> None:
    """The argument that spares nobody."""
    parser.add_argument(
        "--force", action="store_true", help="stop also what would not come back, and a pool's only ready worker"
    )


def dry_run_argument(parser: ArgumentParser) -> None:
    """The argument that does nothing."""
    parser.add_argument("--dry-run", action="store_true", help="say what would be stopped, do nothing")


def forcing(args: Namespace) -> dict[str, bool]:
    """The argument of a request, left out where it is not given: a daemon of an earlier version does not know it."""
    return {"force": True} if args.force else {}


def asks(args: Namespace, screen: Screen) -> bool:
    """Whether somebody is there who can be asked, and wants to be."""
    return not args.yes and screen.draws and screen.is_terminal and sys.stdin is not None and sys.stdin.isatty()


def confirm(args: Namespace, foresight: Foresight | None, screen: Screen) -> None:
    """Show what is stopped and ask where `asks`; Trouble where the answer is no."""
    told = sentences(foresight) if foresight is not None else []
    for sentence in told:
        screen.sentence(sentence, style="yellow")
    if not told or not asks(args, screen):
        return
    screen.out.write(f"{args.verb} all the same? [y/N] ")
    screen.out.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise Trouble("nothing was done", EXIT_FAILED)


def sentences(foresight: Foresight) -> list[str]:
    """What a command stops and who goes without; empty where nobody who serves is stopped."""
    told = [
        f"{what} {counted(len(names), 'ready worker')}{how}: {_some(names)}"
        for what, names, how in (
            ("stops", foresight["stopped"], ""),
            ("restarts", foresight["restarted"], " at once" if len(foresight["restarted"]) > 1 else ""),
            ("restarts", foresight["rolled"], " in turn" if len(foresight["rolled"]) > 1 else ""),
        )
        if names
    ]
    if foresight["without"]:
        pools = foresight["without"]
        whose = f"pool {pools[0]} has" if len(pools) == 1 else f"pools {_some(pools)} have"
        told.append(f"{whose} no ready worker {'then' if foresight['stopped'] else 'meanwhile'}")
    if told and foresight["about_s"] is not None:
        told.append(f"it takes about {_about(foresight['about_s'])}, going by the last starts")
    if foresight["dependents"]:
        told.append(f"others depend on what is stopped and go on without it: {_some(foresight['dependents'])}")
    return told


def _about(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else duration(seconds)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
