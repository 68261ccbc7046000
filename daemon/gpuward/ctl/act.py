"""Commands that act on workers: start, stop, restart, reset, roll."""

from __future__ import annotations

from gpuward.control.protocol import EXIT_OK
from gpuward.ctl.arguments import Command, waiting_arguments
from gpuward.ctl.asking import asking_arguments, asks, confirm, dry_run_argument, forcing, sentences
from gpuward.ctl.fleet_file import read_fleet_file
from gpuward.ctl.text import counted
from gpuward.ctl.trouble import Usage
from gpuward.ctl.waiting import finish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from gpuward.control.client import Client
    from gpuward.control.documents import Foreseen, Started
    from gpuward.ctl.screen import Screen


def target_arguments(parser: ArgumentParser) -> None:
    """Arguments of ``start``, ``stop``, ``restart`` and ``reset``."""
    parser.add_argument("targets", nargs="*", metavar="NAME|POOL", help="workers or pools")
    parser.add_argument("--all", action="store_true", help="every worker of the fleet")
    waiting_arguments(parser)


def stopping_arguments(parser: ArgumentParser) -> None:
    """Arguments of ``stop``, ``restart`` and ``reset``."""
    target_arguments(parser)
    asking_arguments(parser)
    dry_run_argument(parser)


def act(args: Namespace, client: Client, screen: Screen) -> int:
    """Send the verb, then wait until every worker is where it shall be."""
    if args.all == bool(args.targets):
        raise Usage("name workers or pools, or say --all" if not args.all else "--all goes without names")
    asked = {"targets": args.targets, "all": args.all}
    return _ask_and_follow(asked, args, client, screen) if args.verb != "start" else _do(asked, args, client, screen)


def roll_arguments(parser: ArgumentParser) -> None:
    """Arguments of ``roll``."""
    parser.add_argument("pool", metavar="POOL", help="the pool")
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help="fleet file: the pool gets what it says, and goes back if that fails"
    )
    waiting_arguments(parser)
    asking_arguments(parser)
    dry_run_argument(parser)


def roll(args: Namespace, client: Client, screen: Screen) -> int:
    """``gpuctl roll``: restart one worker after the other on its GPUs; exit 1 at the first that fails."""
    file = read_fleet_file(args.file) if args.file is not None else None
    return _ask_and_follow({"pool": args.pool, "file": file}, args, client, screen)


def _ask_and_follow(asked: dict[str, object], args: Namespace, client: Client, screen: Screen) -> int:
    """Say first what is stopped, where somebody is there to be asked or that is all that is wanted."""
    if args.dry_run or asks(args, screen):
        foreseen: Foreseen = client.call(args.verb, {**asked, **forcing(args), "dry_run": True})
        if args.dry_run:
            items = [{"name": name} for name in foreseen["workers"]]
            told = sentences(foreseen["foresight"]) or ["stops nobody who serves"]
            screen.listing(foreseen, items, foreseen["workers"], lambda: screen.sentence("; ".join(told)))
            return EXIT_OK
        confirm(args, foreseen["foresight"], screen)
    return _do({**asked, **forcing(args)}, args, client, screen)


def _do(asked: dict[str, object], args: Namespace, client: Client, screen: Screen) -> int:
    started: Started = client.call(args.verb, asked)
    if not args.no_wait:
        return finish(client, started["operation"], screen, args.timeout)
    names = started["workers"]
    items = [{"name": name, "operation": started["operation"]} for name in names]
    screen.listing(started, items, names, lambda: screen.line(f"{args.verb}: told to {counted(len(names), 'worker')}"))
    return EXIT_OK


COMMANDS = {verb: Command(stopping_arguments, act) for verb in ("stop", "restart", "reset")}
COMMANDS["start"] = Command(target_arguments, act)
COMMANDS["roll"] = Command(roll_arguments, roll)
