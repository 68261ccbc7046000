"""Commands that look: status, gpus, why."""

from __future__ import annotations

import time

from gpuward.control.protocol import EXIT_FAILED, EXIT_NO_SUCH, EXIT_NOT_READY, EXIT_OK
from gpuward.ctl.arguments import Command, seconds
from gpuward.ctl.render_status import draw_gpus, draw_status, draw_why
from gpuward.ctl.trouble import Trouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

    from gpuward.control.client import Client
    from gpuward.control.documents import Status, Why, Worker
    from gpuward.ctl.screen import Screen


def status_arguments(parser: ArgumentParser) -> None:
    """Arguments of ``status``."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these workers or pools")
    parser.add_argument("--check", action="store_true", help="exit 3 unless every wanted worker is ready")
    watch_arguments(parser)


def watch_arguments(parser: ArgumentParser) -> None:
    """Arguments of everything that can be shown again and again."""
    parser.add_argument("-w", "--watch", action="store_true", help="show again and again, until Ctrl-C")
    parser.add_argument("--interval", type=seconds, default=1.0, metavar="S", help="seconds between two looks (1)")


def show_status(args: Namespace, client: Client, screen: Screen) -> int:
    """``gpuctl status``: exit 3 with --check where a wanted worker is not ready."""

    def look() -> int:
        status: Status = client.call("status")
        workers = chosen(status["workers"], args.names)
        document = {**status, "workers": workers}
        screen.listing(
            document, workers, [worker["name"] for worker in workers], lambda: draw_status(screen, status, workers)
        )
        fleet = status.get("fleet")
        nothing_applied = fleet is not None and fleet["revision"] == 0 and fleet["drift"]
        waiting = nothing_applied or any(worker["goal"] == "up" and not worker["ready"] for worker in workers)
        return EXIT_NOT_READY if args.check and waiting else EXIT_OK

    return _again_and_again(look, args, screen)


def show_gpus(args: Namespace, client: Client, screen: Screen) -> int:
    """``gpuctl gpus``."""

    def look() -> int:
        status: Status = client.call("status")
        kept = {key: status[key] for key in ("schema_version", "simulated", "daemon", "gpus")}
        names = [gpu["uuid"] for gpu in status["gpus"]]
        screen.listing(kept, status["gpus"], names, lambda: draw_gpus(screen, status))
        return EXIT_OK

    return _again_and_again(look, args, screen)


def why_arguments(parser: ArgumentParser) -> None:
    """Arguments of ``why``."""
    parser.add_argument("worker", metavar="NAME", help="a worker, for example decode/0")
    parser.add_argument("--fix", action="store_true", help="print keys for the fleet file that keep what was lowered")


def show_why(args: Namespace, client: Client, screen: Screen) -> int:
    """``gpuctl why``: what a worker does, why, since when, and its runs."""
    why: Why = client.call("why", {"worker": args.worker})
    if args.fix:
        if not why.get("fix"):
            raise Trouble(f"there is nothing to fix: {args.worker} runs as its pool says", EXIT_FAILED)
        screen.out.write(why["fix"])
        return EXIT_OK
    screen.listing(why, why["runs"], [str(run["run"]) for run in why["runs"]], lambda: draw_why(screen, why))
    return EXIT_OK


def chosen(workers: list[Worker], names: list[str]) -> list[Worker]:
    """Return the workers with these names or in these pools, all where none is named."""
    for name in names:
        if not any(name in (worker["name"], worker["pool"]) for worker in workers):
            known = ", ".join(worker["name"] for worker in workers[:12]) or "none"
            more = f" and {len(workers) - 12} more" if len(workers) > 12 else ""
            raise Trouble(
                f"cannot show {name!r}: no worker or pool has this name; there are {known}{more}", EXIT_NO_SUCH
            )
    return [worker for worker in workers if not names or worker["name"] in names or worker["pool"] in names]


def _again_and_again(look: Callable[[], int], args: Namespace, screen: Screen) -> int:
    if not args.watch:
        return look()
    while True:
        if screen.is_terminal and screen.draws:
            screen.clear()
        look()
        screen.out.flush()
        time.sleep(args.interval)


COMMANDS = {
    "status": Command(status_arguments, show_status),
    "gpus": Command(watch_arguments, show_gpus),
    "why": Command(why_arguments, show_why),
}
