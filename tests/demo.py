"""`make demo`: a Dynamo file on a simulated 8-GPU host: start, look, kill a worker, see it back, stop, nothing left.

Asks nothing, needs no GPU and no root, stays below one temporary directory, ends within a minute with exit code 0.
`--live` stops after the look and leaves the daemon running to play with.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

PROGRAMS = Path(sys.executable).parent
HOST = "8xH100-80GB"
WORKERS = 4
VICTIM = "VllmWorker/1"
READY_WITHIN_S = 30.0
BACK_WITHIN_S = 20.0
STOPPED_WITHIN_S = 20.0
COMMAND_WITHIN_S = 10.0
POLL_S = 0.25
LOG_TAIL_LINES = 40

SEED = Path(__file__).parent.parent / "etc/dynamo.yaml"


class DemoFailed(Exception):
    """A step did not come out as it must."""


class Demo:
    """One daemon in one temporary directory, and the commands shown on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "daemon.log"
        self.socket = directory / "control.sock"
        self.environment = {**os.environ, "GPUWARD_SOCKET": str(self.socket)}
        self.daemon: subprocess.Popen[bytes] | None = None
        self.family: list[psutil.Process] = []

    def write_files(self) -> None:
        """Lay out what a user has: the fleet, a model directory, host settings."""
        shutil.copy(SEED, self.directory / "seed.yaml")
        (self.directory / "models/llama3.1-8b-ins").mkdir(parents=True)
        (self.directory / "gpuward.toml").write_text("# Host settings: every key has a default.\n")
        show("cat seed.yaml")
        say(SEED.read_text().rstrip())

    def start_daemon(self) -> None:
        """Start the daemon in a session of its own, so that Ctrl-C ends the demo and the demo ends the daemon."""
        arguments = ["run", "--config", "gpuward.toml", "--fleet", "seed.yaml", "--simulate", HOST]
        arguments += ["--socket", str(self.socket), "--state-dir", "state", "--runtime-dir", "run"]
        show(f"export GPUWARD_SOCKET={self.socket}")
        show(f"gpuward {shlex.join(arguments)} > daemon.log 2>&1 &")
        with self.log.open("wb") as log:
            self.daemon = subprocess.Popen(
                [PROGRAMS / "gpuward", *arguments],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def gpuctl(self, *arguments: str) -> None:
        """Run one command as a user would, its output straight to this terminal."""
        shown = f"gpuctl {shlex.join(arguments)}"
        show(shown)
        command = [str(PROGRAMS / "gpuctl"), *arguments]
        try:
            subprocess.run(command, cwd=self.directory, env=self.environment, timeout=COMMAND_WITHIN_S, check=True)
        except subprocess.CalledProcessError as ended:
            raise DemoFailed(f"{shown} ended with exit code {ended.returncode}") from None
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"{shown} did not end within {COMMAND_WITHIN_S:.0f} s") from None

    def workers(self) -> dict[str, dict[str, Any]]:
        """Ask `gpuctl status -o json`; empty as long as the daemon does not answer."""
        command = [str(PROGRAMS / "gpuctl"), "status", "-o", "json"]
        asked = subprocess.run(
            command, env=self.environment, capture_output=True, timeout=COMMAND_WITHIN_S, check=False
        )
        if asked.returncode != 0:
            return {}
        return {worker["name"]: worker for worker in json.loads(asked.stdout)["workers"]}

    def wait(self, what: str, reached: Callable[[dict[str, dict[str, Any]]], bool], within_s: float) -> None:
        """Poll until ``reached`` of the workers; DemoFailed when the daemon ends or the time is over."""
        assert self.daemon is not None
        started = time.monotonic()
        while not reached(workers := self.workers()):
            if (code := self.daemon.poll()) is not None:
                raise DemoFailed(f"the daemon ended with exit code {code} while waiting until {what}")
            if time.monotonic() - started > within_s:
                phases = {name: (worker["phase"], worker["reason"]) for name, worker in workers.items()}
                raise DemoFailed(f"not within {within_s:g} s: {what}; workers: {phases}")
            time.sleep(POLL_S)
        narrate(f"{what}: after {time.monotonic() - started:.1f} s")

    def kill(self, name: str) -> int:
        """SIGKILL the main process of a worker as the host's memory killer would; return the run that this ends."""
        worker = self.workers()[name]
        show(f"kill -KILL {worker['pid']}")
        os.kill(worker["pid"], signal.SIGKILL)
        return int(worker["run"])

    def stop(self) -> None:
        """SIGTERM the daemon: it stops its workers in order and exits 0."""
        assert self.daemon is not None
        keepers = [psutil.Process(worker["keeper_pid"]) for worker in self.workers().values() if worker["keeper_pid"]]
        self.family = [process for keeper in keepers for process in (keeper, *keeper.children(recursive=True))]
        show(f"kill -TERM {self.daemon.pid}")
        started = time.monotonic()
        self.daemon.terminate()
        try:
            code = self.daemon.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"the daemon did not stop within {STOPPED_WITHIN_S:.0f} s of SIGTERM") from None
        if code != 0:
            raise DemoFailed(f"the daemon ended with exit code {code} after SIGTERM, not 0")
        narrate(f"the daemon has stopped its workers and itself: after {time.monotonic() - started:.1f} s")

    def leftovers(self) -> list[int]:
        """Pids of what ran under the keepers at the stop, and of all with our directory in arguments or environment."""
        left = {process.pid for process in self.family if process.is_running()}
        for process in psutil.process_iter():
            try:
                traces = [*process.cmdline(), *process.environ().values()]
            except psutil.Error:
                continue  # gone, or somebody else's
            if any(str(self.directory) in trace for trace in traces) and process.pid != os.getpid():
                left.add(process.pid)
        return sorted(left)

    def clean_up(self) -> None:
        """Whatever happened: no process of ours stays, nor a file."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.daemon.wait(STOPPED_WITHIN_S)
            self.daemon.kill()
            self.daemon.wait()
        for pid in self.leftovers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)


def say(text: str) -> None:
    print(text, flush=True)


def narrate(text: str) -> None:
    say(f"# {text}")


def show(command: str) -> None:
    say(f"\n$ {command}")


def bring_up(demo: Demo) -> None:
    """From nothing to four ready workers, shown."""
    narrate("a Dynamo file as it is: three decode workers and one prefill worker, on a simulated host of 8 GPUs")
    demo.write_files()
    demo.gpuctl("plan", "seed.yaml", "--simulate", HOST)
    demo.start_daemon()
    demo.wait(
        f"all {WORKERS} workers are ready",
        lambda workers: sum(worker["ready"] for worker in workers.values()) == WORKERS,
        READY_WITHIN_S,
    )
    demo.gpuctl("status")
    demo.gpuctl("gpus")


def kill_and_recover(demo: Demo) -> None:
    """A worker dies a violent death and comes back, with the cause on record."""
    narrate(f"the main process of {VICTIM} dies; its engine would go on holding the GPU")
    ended = demo.kill(VICTIM)
    demo.wait(
        f"{VICTIM} is ready again",
        lambda workers: bool(workers) and workers[VICTIM]["ready"] and workers[VICTIM]["run"] > ended,
        BACK_WITHIN_S,
    )
    demo.gpuctl("status")
    demo.gpuctl("why", VICTIM)


def stop_and_look(demo: Demo) -> None:
    """Everything stops, and nothing is left."""
    demo.stop()
    if left := demo.leftovers():
        raise DemoFailed(f"{len(left)} processes are left after the stop: {left}")
    narrate("no process is left")


def explain(demo: Demo) -> None:
    """How to play, and how to stop."""
    assert demo.daemon is not None
    where = shlex.quote(str(demo.directory))
    say(f"""
The daemon (pid {demo.daemon.pid}) runs on. To play, put this into your shell:

    export GPUWARD_SOCKET={demo.socket} PATH={PROGRAMS}:$PATH

    gpuctl                          what runs
    gpuctl gpus                     what each GPU holds
    gpuctl restart {VICTIM}     with a live progress line
    gpuctl stop PrefillWorker       stays down until you say start
    gpuctl scale VllmWorker=5       two more GPUs
    gpuctl logs VllmWorker/0 -f     what it says
    gpuctl events -f                what happens, while you kill -9 something
    gpuctl why VllmWorker/0         why it is where it is

To stop everything and remove its files:

    kill {demo.daemon.pid}; sleep 5; rm -r {where}
""")


def main() -> int:
    """Run the demo; 0 when every step came out as it must, 1 with the daemon's log otherwise."""
    parser = argparse.ArgumentParser(description="show gpuward at work on a simulated host")
    parser.add_argument("--live", action="store_true", help="leave the daemon running to play with")
    live = parser.parse_args().live
    demo = Demo(Path(tempfile.mkdtemp(prefix="gpuward-demo-")))
    keep = False
    try:
        bring_up(demo)
        if live:
            explain(demo)
            keep = True
        else:
            kill_and_recover(demo)
            stop_and_look(demo)
    except DemoFailed as failed:
        log = demo.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:] if demo.log.exists() else []
        say("\n".join(["", "the last lines of the daemon's log:", *log, "", f"demo failed: {failed}"]))
        return 1
    except KeyboardInterrupt:
        say("\ninterrupted")
        return 130
    finally:
        if not keep:
            demo.clean_up()
    return 0


if __name__ == "__main__":
    sys.exit(main())
