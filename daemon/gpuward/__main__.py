"""``gpuward``: the daemon's command line. Reads arguments, then hands over to `app`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpuward import __version__

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
    return top


def run_description() -> str:
    """What `gpuward run --help` says first."""
    return (
        "Run the daemon in the foreground. SIGTERM stops the workers in order and ends; a second one kills them. "
        "SIGHUP applies the file given with --fleet. After a crash the next start adopts the workers that live."
    )


def main() -> None:
    """Run; the exit code is 0 after an orderly stop, 78 for an unusable configuration, 1 otherwise."""
    arguments = parser().parse_args()
    # structlog imports rich where it is installed, and the daemon never draws: 5 MiB of its 50.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    from gpuward.app import Options, run
    from gpuward.daemon import CannotRun

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
        print(f"gpuward: {error}", file=sys.stderr)  # noqa: T201 - the log is not open yet, or the terminal is it
        sys.exit(EX_CONFIG if error.permanent else 1)


if __name__ == "__main__":
    main()
