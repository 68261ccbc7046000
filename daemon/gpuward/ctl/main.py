"""gpuctl's entry: finds the verb, parses only what that verb takes, runs it, turns every ending into an exit code."""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # without the enums
import argparse
import os
import sys

from gpuward.control import protocol
from gpuward.control.client import Client, NotAllowed, Refused, Unreachable
from gpuward.ctl.arguments import Command, common_arguments
from gpuward.ctl.screen import NARROW_DEFAULT, Screen, standard_screen, terminal_width
from gpuward.ctl.trouble import Trouble, Usage

VERBS = {
    "status": "the workers and their phases (also with no command)",
    "gpus": "the GPUs: used, claimed, by whom",
    "gpu": "take a GPU out of service (cordon), or back (uncordon, clear)",
    "inventory": "let the NVIDIA driver go for a reload or reset (release), or back (resume)",
    "why": "why a worker is where it is, and its runs",
    "plan": "which worker would get which GPUs; works without a daemon",
    "diff": "what applying a file would change",
    "apply": "make a file the fleet that runs",
    "reload": "apply the file that the daemon was started with",
    "scale": "change the number of workers of a pool",
    "import": "print the fleet TOML of a Dynamo YAML file",
    "start": "start workers or pools",
    "stop": "stop workers or pools; they stay down",
    "restart": "restart workers or pools",
    "roll": "restart a pool one worker after the other; goes back at the first failure",
    "reset": "undo what on-oom = adapt has lowered",
    "logs": "a worker's output",
    "events": "what happened",
    "daemon": "put the installed version in the daemon's place, or end it; workers go on",
    "sim": "faults of a simulated host",
    "ping": "whether the daemon answers",
    "version": "versions of gpuctl and of the daemon",
}
EXIT_CODES = (
    "exit codes: 0 ok, 1 failed, 2 usage, 3 not all ready (status --check),\n"
    "4 no such worker or GPU, 5 daemon unreachable, 6 refused by plan or policy,\n"
    "7 not permitted, 124 timed out, 130 interrupted, 141 output closed"
)
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
_WITH_VALUE = frozenset({"--socket", "-o", "--output", "--color"})


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code. argparse leaves by SystemExit for --help and usage errors."""
    verb, rest = split_verb(sys.argv[1:] if argv is None else argv)
    if verb is None and ("-h" in rest or "--help" in rest):
        rest = ["--help"]
    elif verb is None and rest == ["--version"]:
        verb, rest = "version", []
    elif verb is None:
        verb = "status"
    if verb not in VERBS:
        parser = full_parser()
        parser.parse_args(rest if verb is None else [verb])
        return protocol.EXIT_USAGE
    command = command_of(verb)
    parser = verb_parser(verb, command)
    args = parser.parse_intermixed_args(rest)
    args.verb = verb
    screen = standard_screen(output=args.output, color=args.color, headers=not args.no_headers)
    try:
        return run(command, args, screen)
    except Usage as error:
        parser.error(str(error))


def run(command: Command, args: argparse.Namespace, screen: Screen) -> int:
    """Run ``command`` against the daemon; every way to fail becomes a sentence on stderr and an exit code."""
    path = args.socket or os.environ.get("GPUWARD_SOCKET") or usual_socket()
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on it is an exception that is caught
        with Client(path) as client:
            code = command.run(args, client, screen)
        screen.out.flush()
    except Trouble as trouble:
        screen.complain(trouble.message)
        return trouble.exit_code
    except Refused as refused:
        screen.complain(refused.message)
        return protocol.EXIT_BY_ERROR.get(refused.code, protocol.EXIT_FAILED)
    except Unreachable as unreachable:
        screen.complain(str(unreachable))
        return protocol.EXIT_NOT_PERMITTED if isinstance(unreachable, NotAllowed) else protocol.EXIT_UNREACHABLE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return EXIT_BROKEN_PIPE
    except OSError as error:  # nobody else raises one: the output cannot be written
        _forget_stdout()
        screen.complain(f"cannot write the output: {error.strerror}")
        return protocol.EXIT_FAILED
    return code


def usual_socket() -> str:
    """The service's socket, or where that is not there, the one of a daemon that this user runs."""
    if os.path.exists(protocol.DEFAULT_SOCKET):  # noqa: PTH110 - no pathlib
        return protocol.DEFAULT_SOCKET
    for runtime in (os.environ.get("XDG_RUNTIME_DIR"), os.path.expanduser("~/.cache/run")):  # noqa: PTH111
        own = f"{runtime}/gpuward/control.sock"
        if runtime and os.path.exists(own):  # noqa: PTH110
            return own
    return protocol.DEFAULT_SOCKET


def split_verb(argv: list[str]) -> tuple[str | None, list[str]]:
    """Return the verb, None where there is none, and the arguments without it."""
    at = 0
    while at < len(argv) and argv[at] != "--":
        if argv[at] in _WITH_VALUE:
            at += 2
        elif argv[at].startswith("-"):
            at += 1
        else:
            return argv[at], argv[:at] + argv[at + 1 :]
    return None, argv


def command_of(verb: str) -> Command:
    """Return the command; imports only the module that holds it, since every import delays the answer."""
    match verb:
        case "status" | "gpus" | "why":
            from gpuward.ctl.look import COMMANDS
        case "gpu" | "inventory" | "sim":
            from gpuward.ctl.gpu import COMMANDS
        case "start" | "stop" | "restart" | "reset" | "roll":
            from gpuward.ctl.act import COMMANDS
        case "logs" | "events":
            from gpuward.ctl.follow import COMMANDS
        case "daemon":
            from gpuward.ctl.daemon import COMMANDS
        case "ping" | "version":
            from gpuward.ctl.about import COMMANDS
        case _:
            from gpuward.ctl.fleet import COMMANDS
    return COMMANDS[verb]


class HelpLines(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal; told to argparse, which would import shutil (4 ms) for it, help or not."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=(terminal_width(sys.stdout) or NARROW_DEFAULT) - 2)


def verb_parser(verb: str, command: Command) -> argparse.ArgumentParser:
    """Return the parser of one verb, which takes the common arguments before and after it."""
    parser = argparse.ArgumentParser(
        prog=f"gpuctl {verb}",
        description=VERBS[verb],
        epilog=EXIT_CODES,
        formatter_class=HelpLines,
        allow_abbrev=False,
    )
    common_arguments(parser)
    command.arguments(parser)
    return parser


def full_parser() -> argparse.ArgumentParser:
    """Return the parser with every verb, for --help, completion and manual pages."""
    parser = argparse.ArgumentParser(
        prog="gpuctl",
        description="Asks and commands the gpuward daemon. With no command: status.",
        epilog=EXIT_CODES,
        formatter_class=HelpLines,
        allow_abbrev=False,
    )
    common_arguments(parser)
    parser.add_argument("--version", action="store_true", help="as the command version")
    verbs = parser.add_subparsers(metavar="COMMAND", title="commands", required=True)
    for verb, summary in VERBS.items():
        command = command_of(verb)
        one = verbs.add_parser(verb, help=summary, description=summary, allow_abbrev=False)
        common_arguments(one)
        command.arguments(one)
    return parser


def _forget_stdout() -> None:
    """Whoever read stdout is gone: let the interpreter's last flush go nowhere instead of complaining."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
