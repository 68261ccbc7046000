"""``gpuward``: the daemon's command line. Reads arguments, then hands over to `app` or `install`."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

from gpuward import __version__
from gpuward.host.own_process import open_standard_streams

EX_CONFIG = 78
"""Exit code for a configuration that cannot be used (sysexits.h); systemd is told not to try again."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="gpuward", description="Keeps LLM inference workers alive on their GPUs.")
    top.add_argument("--version", action="version", version=f"gpuward {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run the daemon in the foreground", description=run_description())
    run.add_argument("--config", type=Path, metavar="FILE", help="host settings (default: /etc/gpuward/gpuward.toml)")
    run.add_argument("--fleet", type=Path, metavar="FILE", help="fleet to apply at the first start (TOML, Dynamo YAML)")
    run.add_argument("--simulate", metavar="SPEC", help="simulated GPUs instead of real ones, such as 8xH100-80GB")
    run.add_argument("--socket", metavar="PATH", help="control socket (default: control.sock in the runtime directory)")
    run.add_argument("--state-dir", type=Path, metavar="DIR", help="what survives a reboot (default: /var/lib/gpuward)")
    run.add_argument("--runtime-dir", type=Path, metavar="DIR", help="what dies with the boot (default: /run/gpuward)")
    for name, says in (("install", "put the systemd unit and example configs in place"), ("uninstall", "remove them")):
        put = commands.add_parser(name, help=says, description=INSTALL_DESCRIPTION if name == "install" else None)
        put.add_argument("--systemd", action="store_true", required=True, help="for systemd, the only one there is")
        put.add_argument("--prefix", type=Path, default=Path("/"), metavar="DIR", help="below DIR (packages, images)")
        put.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    return top


INSTALL_DESCRIPTION = (
    "Write gpuward.service (starting this gpuward), its sysusers.d and tmpfiles.d files and example configs. Files "
    "that were changed here are kept. Runs no command: it prints those that follow."
)


def run_description() -> str:
    """What `gpuward run --help` says first."""
    return (
        "Run the daemon in the foreground. SIGTERM stops the workers in order and ends; a second one kills them. "
        "SIGHUP applies the file given with --fleet. After a crash the next start adopts the workers that live."
    )


def main() -> None:
    """Run; the exit code is 0 after an orderly stop, 78 for an unusable configuration, 1 otherwise."""
    arguments = parser().parse_args()
    if arguments.command == "run":
        run_daemon(arguments)
    else:
        sys.exit(put_in_place(arguments))


def put_in_place(arguments: argparse.Namespace) -> int:
    """Install or uninstall; return the exit code."""
    from gpuward import install

    root, uninstalling = arguments.prefix.absolute(), arguments.command == "uninstall"
    try:
        program = install.own_program(sys.argv[0])
        files = install.contents(install.shipped_files(), program)
        steps = (install.plan_uninstall if uninstalling else install.plan_install)(root, files)
        lines = [*map(str, steps)]
        if arguments.dry_run:
            lines = [f"would be {line}" for line in lines]
        elif uninstalling:
            install.uninstall(root, steps)
        else:
            install.install(root, files, steps)
    except install.CannotInstall as error:
        print(f"gpuward: {error}", file=sys.stderr)  # noqa: T201
        return 1
    follow = install.next_commands(steps, root, uninstalling=uninstalling)
    lines += ["", "Next:", *(f"  {command}" for command in follow)] if follow else ["", "Nothing to do."]
    closed = "" if uninstalling else install.unreachable(program)
    lines += ["", f"Warning: {closed}."] if closed else []
    print("\n".join(lines))  # noqa: T201 - this is its answer
    return 0


def run_daemon(arguments: argparse.Namespace) -> None:
    """Run until told to stop."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # kept until the daemon can answer it
    open_standard_streams()
    # structlog imports rich where it is installed, and the daemon never draws: 5 MiB of its 50.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    from gpuward.app import Options, run
    from gpuward.supervisor.daemon import CannotRun

    options = Options(
        config=arguments.config,
        fleet=arguments.fleet,
        simulate=arguments.simulate,
        socket=arguments.socket,
        state_dir=arguments.state_dir,
        runtime_dir=arguments.runtime_dir,
    )
    try:
        run(options)
    except CannotRun as error:
        with suppress(OSError):  # the exit code says it too
            print(_for_stderr(f"gpuward: {error}"), file=sys.stderr, flush=True)  # noqa: T201 - the log is not open yet
        sys.exit(EX_CONFIG if error.permanent else 1)


def _for_stderr(message: str) -> str:
    """On a terminal no wider than that; in the journal each line with the priority "error" in front (sd-daemon(3))."""
    from gpuward.host.journald import is_journal

    if sys.stderr.isatty():
        columns = shutil.get_terminal_size().columns
        lines = (textwrap.wrap(line, columns, subsequent_indent="  ") for line in message.splitlines())
        return "\n".join(line for wrapped in lines for line in wrapped)
    prefix = "<3>" if is_journal(2, os.environ) else ""
    return "\n".join(prefix + line for line in message.splitlines())


if __name__ == "__main__":
    main()
