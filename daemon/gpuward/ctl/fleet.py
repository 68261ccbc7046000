"""Commands about the fleet as a whole: plan, diff, apply, reload, scale, import."""

from __future__ import annotations

from gpuward.control.client import Refused, Unreachable
from gpuward.control.protocol import EXIT_BY_ERROR, EXIT_OK, EXIT_REFUSED
from gpuward.ctl.arguments import Command, waiting_arguments
from gpuward.ctl.asking import asking_arguments, asks, confirm, dry_run_argument, forcing, sentences
from gpuward.ctl.fleet_file import read_fleet_file
from gpuward.ctl.render_fleet import complain_problems, complain_warnings, draw_changes, draw_plan
from gpuward.ctl.trouble import Usage
from gpuward.ctl.waiting import finish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

    from gpuward.control.client import Client
    from gpuward.control.documents import Applied, Diff, Drift, FleetText, Plan
    from gpuward.ctl.screen import Screen


def plan_arguments(parser: ArgumentParser) -> None:
    """Arguments of ``plan``."""
    _file_argument(parser)
    _prune_argument(parser)
    parser.add_argument(
        "--simulate", metavar="SPEC", help="plan for these GPUs, for example 8xH100-80GB; no daemon asked"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="host settings for a plan without a daemon (/etc/gpuward/gpuward.toml)"
    )


def plan(args: Namespace, client: Client, screen: Screen) -> int:
    """``gpuctl plan``: what would run where; exit 6 where it does not fit."""
    planned = _plan(read_fleet_file(args.file), args, client, screen)
    return _show_plan(planned, screen)


def _plan(fleet: FleetText, args: Namespace, client: Client, screen: Screen) -> Plan:
    if args.simulate is None:
        try:
            answer: Plan = client.call("plan", {**fleet, **_pruning(args)})
        except Unreachable as unreachable:
            screen.complain(f"planned without a daemon, with the GPUs of this host: {unreachable}")
        else:
            return answer
    from gpuward.plan_locally import BadSpec, plan_locally  # everything that the daemon plans with

    try:
        return plan_locally(fleet, simulate=args.simulate, config=args.config)
    except BadSpec as error:
        raise Usage(str(error)) from None


def _show_plan(planned: Plan, screen: Screen) -> int:
    workers = planned["workers"]
    screen.listing(planned, workers, [worker["name"] for worker in workers], lambda: draw_plan(screen, planned))
    if not screen.draws and screen.output != "json":
        complain_warnings(screen, planned)
    complain_problems(screen, planned)
    return EXIT_OK if planned["ok"] else EXIT_REFUSED


def diff_arguments(parser: ArgumentParser) -> None:
    """Arguments of ``diff``."""
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="fleet file, - for stdin; none: the file that the daemon was started with",
    )
    _prune_argument(parser)


def diff(args: Namespace, client: Client, screen: Screen) -> int:
    """``gpuctl diff``: what applying the file would change; without one, applying the file of the daemon's start."""
    if args.file is None:
        return _show_drift(client, screen)
    difference = _compared(read_fleet_file(args.file), args, client)
    return _show_difference(difference, screen, lambda: _draw_diff(difference, screen))


def _show_drift(client: Client, screen: Screen) -> int:
    drift: Drift = client.call("diff")

    def draw() -> None:
        applied = f"revision {drift['revision']}" + (f" of {drift['source']}" if drift["source"] else "")
        touched = any(change["action"] != "keep" for change in drift["changes"])
        if not drift["drift"] and not touched and drift["plan"]["ok"]:
            screen.sentence(f"no difference: {drift['file']} says what runs, {applied}")
            return
        screen.sentence(drift["drift_reason"] or f"{drift['file']} is applied, {applied}, but not all runs as it says")
        if drift["plan"]["ok"]:
            draw_changes(screen, drift["changes"])
            screen.sentence("gpuctl reload applies the file")

    return _show_difference(drift, screen, draw)


def _show_difference(difference: Diff, screen: Screen, draw: Callable[[], None]) -> int:
    names = [change["worker"] for change in difference["changes"] if change["action"] != "keep"]
    screen.listing(difference, difference["changes"], names, draw)
    complain_problems(screen, difference["plan"])
    return EXIT_OK if difference["plan"]["ok"] else EXIT_REFUSED


def _compared(fleet: FleetText, args: Namespace, client: Client) -> Diff:
    answer: Diff = client.call("diff", {**fleet, **_pruning(args)})
    return answer


def _draw_diff(difference: Diff, screen: Screen) -> None:
    draw_plan(screen, difference["plan"])
    if difference["plan"]["ok"]:
        screen.line()
        draw_changes(screen, difference["changes"])


def apply_arguments(parser: ArgumentParser) -> None:
    """Arguments of ``apply``."""
    _file_argument(parser)
    _prune_argument(parser)
    parser.add_argument("--dry-run", action="store_true", help="show the plan and the changes, apply nothing")
    waiting_arguments(parser)
    asking_arguments(parser)


def apply(args: Namespace, client: Client, screen: Screen) -> int:
    """``gpuctl apply``: plan, show, apply what was shown and nothing else, wait until it runs."""
    fleet = read_fleet_file(args.file)
    difference = _compared(fleet, args, client)
    if args.dry_run or not difference["plan"]["ok"]:
        return _end_before_applying(difference, screen)
    if screen.draws:
        _draw_diff(difference, screen)
        confirm(args, difference.get("foresight"), screen)
        screen.out.flush()
    asked = {**fleet, **_pruning(args), **forcing(args), "expected_revision": difference["revision"]}
    applied: Applied = client.call("apply", asked)
    return _conclude(applied, args, client, screen)


def _end_before_applying(difference: Diff, screen: Screen) -> int:
    names = [change["worker"] for change in difference["changes"]]
    screen.listing(difference, difference["changes"], names, lambda: _draw_foreseen(difference, screen))
    complain_problems(screen, difference["plan"])
    return EXIT_OK if difference["plan"]["ok"] else EXIT_REFUSED


def _draw_foreseen(difference: Diff, screen: Screen) -> None:
    _draw_diff(difference, screen)
    foresight = difference.get("foresight")
    for sentence in sentences(foresight) if foresight is not None and difference["plan"]["ok"] else ():
        screen.sentence(sentence)


def reload_arguments(parser: ArgumentParser) -> None:
    """Arguments of ``reload``."""
    waiting_arguments(parser)
    asking_arguments(parser)
    dry_run_argument(parser)


def reload(args: Namespace, client: Client, screen: Screen) -> int:
    """``gpuctl reload``: apply the file that the daemon was started with."""
    return _apply_and_show("reload", {}, args, client, screen)


def scale_arguments(parser: ArgumentParser) -> None:
    """Arguments of ``scale``."""
    parser.add_argument("target", metavar="POOL=N", help="pool and its new number of workers")
    waiting_arguments(parser)
    asking_arguments(parser)
    dry_run_argument(parser)


def scale(args: Namespace, client: Client, screen: Screen) -> int:
    """``gpuctl scale``: another number of workers in one pool; those that stay keep their processes."""
    pool, equals, number = args.target.rpartition("=")
    if not (pool and equals and number.isascii() and number.isdecimal()):
        raise Usage(f"{args.target!r} is not POOL=N; give a pool and a whole number, for example decode=3")
    return _apply_and_show("scale", {"pool": pool, "workers": int(number)}, args, client, screen)


def _apply_and_show(op: str, asked: dict[str, object], args: Namespace, client: Client, screen: Screen) -> int:
    asked |= forcing(args)
    drawn = False
    if args.dry_run or asks(args, screen):
        foreseen: Diff = client.call(op, {**asked, "dry_run": True})
        if args.dry_run or not foreseen["plan"]["ok"]:
            return _end_before_applying(foreseen, screen)
        _draw_diff(foreseen, screen)
        confirm(args, foreseen.get("foresight"), screen)
        drawn = True
    try:
        applied: Applied = client.call(op, asked)
    except Refused as refused:
        planned: Plan | None = refused.details.get("plan")
        if not planned or not planned.get("problems"):
            raise
        if screen.output == "json":
            screen.document(refused.details)
        complain_problems(screen, planned)
        return EXIT_BY_ERROR.get(refused.code, EXIT_REFUSED)
    if screen.draws and not drawn:
        _draw_diff(applied, screen)
    return _conclude(applied, args, client, screen)


def _conclude(applied: Applied, args: Namespace, client: Client, screen: Screen) -> int:
    """Say what was applied and wait for it."""
    if screen.draws:
        what = "applied as" if applied.get("changed", True) else "nothing to apply: this is"
        screen.line(f"{what} revision {applied['revision']}")
        screen.out.flush()
    if applied["operation"] is not None and not args.no_wait:
        return finish(client, applied["operation"], screen, args.timeout, applied=applied)
    names = [change["worker"] for change in applied["changes"] if change["action"] != "keep"]
    screen.listing(applied, applied["changes"], names, lambda: None)
    return EXIT_OK


def import_arguments(parser: ArgumentParser) -> None:
    """Arguments of ``import``."""
    parser.add_argument("file", metavar="FILE.yaml", help="Dynamo configuration, - for stdin")


def import_dynamo(args: Namespace, client: Client, screen: Screen) -> int:
    """``gpuctl import``: print the fleet TOML that equals a Dynamo file; no daemon asked."""
    del client
    fleet = read_fleet_file(args.file)
    from gpuward.config.errors import ConfigError  # with msgspec and PyYAML, which nothing else here needs
    from gpuward.interop.dynamo.file import decode_dynamo_yaml
    from gpuward.interop.fleet_files import is_yaml
    from gpuward.interop.fleet_toml import fleet_to_toml

    if not is_yaml(fleet["text"], fleet["name"]):
        screen.complain(
            f"cannot import {args.file}: it is a fleet file already; gpuctl plan and apply take it as it is"
        )
        return EXIT_REFUSED
    try:
        decoded = decode_dynamo_yaml(fleet["text"], file=fleet["name"], directory=fleet["directory"])
    except ConfigError as error:
        for problem in error.problems:
            screen.complain(f"cannot import {args.file}: {problem.message} ({problem.code})")
        return EXIT_REFUSED
    for warning in decoded.warnings:
        screen.complain(f"warning: {warning.message} ({warning.code})")
    screen.out.write(fleet_to_toml(decoded))
    return EXIT_OK


def _prune_argument(parser: ArgumentParser) -> None:
    parser.add_argument("--prune", action="store_true", help="stop and remove pools that the file does not name")


def _pruning(args: Namespace) -> dict[str, bool]:
    """The argument of a request, left out where it is not given: a daemon of an earlier version does not know it."""
    return {"prune": True} if args.prune else {}


def _file_argument(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="fleet TOML or Dynamo YAML, - for stdin")


COMMANDS = {
    "plan": Command(plan_arguments, plan),
    "diff": Command(diff_arguments, diff),
    "apply": Command(apply_arguments, apply),
    "reload": Command(reload_arguments, reload),
    "scale": Command(scale_arguments, scale),
    "import": Command(import_arguments, import_dynamo),
}
