"""gpuward and the two supervisors it is compared with, with N workers that only sleep; started and stopped here."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import outside

ROOT = Path(__file__).parents[2]
OWN_PROGRAMS = Path(sys.executable).parent
RIVAL_PROGRAMS = Path(os.environ.get("GPUWARD_BENCH_ENV", ROOT / ".venv-bench")) / "bin"
SIMULATED_HOST = "8xH100-80GB"
UP_WITHIN_S = 60.0
DOWN_WITHIN_S = 30.0


@dataclass(frozen=True)
class Supervisor:
    """One supervisor under way: its pid, what its workers run, and what an operator types to see them.

    ``period_s``: how often it looks for ended workers where it polls (else a second, to spread the kills over).
    """

    name: str
    pid: int
    worker_command: list[str]
    status_command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    socket: Path | None = None
    period_s: float = 1.0


def rivals() -> list[str]:
    """Names of the rivals that are installed in the bench environment."""
    return [name for name, program in PROGRAMS.items() if (RIVAL_PROGRAMS / program).exists()]


PROGRAMS = {"supervisord": "supervisord", "circus": "circusd"}


@contextlib.contextmanager
def gpuward(workers: int, directory: Path) -> Iterator[Supervisor]:
    """A daemon on a simulated host, restarting at once, with a budget that no measurement exhausts."""
    command = _sleep(0)
    socket = directory / "control.sock"
    (directory / "fleet.toml").write_text(f"""\
[pool.sleeper]
engine = "command"
command = ["{command[0]}", "{command[1]}"]
workers = {workers}
gpus-per-worker = 0
ready-after-s = 0.0

[pool.sleeper.restart]
max-failures = 1000
delay-first-s = 0.01
reset-after-s = 0.01
""")
    (directory / "gpuward.toml").write_text("")
    started = [str(OWN_PROGRAMS / "gpuward"), "run", "--simulate", SIMULATED_HOST, "--socket", str(socket)]
    started += ["--config", "gpuward.toml", "--fleet", "fleet.toml", "--state-dir", "state", "--runtime-dir", "run"]
    status = [str(OWN_PROGRAMS / "gpuctl"), "status"]
    with _started(started, directory, command, workers) as pid:
        yield Supervisor("gpuward", pid, command, status, {"GPUWARD_SOCKET": str(socket)}, socket)


@contextlib.contextmanager
def supervisord(workers: int, directory: Path) -> Iterator[Supervisor]:
    """Supervisord as shipped, with the restart policy always."""
    command = _sleep(1)
    config, socket = directory / "supervisord.conf", directory / "supervisor.sock"
    config.write_text(f"""\
[unix_http_server]
file={socket}
[supervisord]
nodaemon=true
logfile={directory}/supervisord.log
pidfile={directory}/supervisord.pid
childlogdir={directory}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{socket}
[program:sleeper]
command={" ".join(command)}
numprocs={workers}
process_name=%(program_name)s_%(process_num)02d
autorestart=true
""")
    started = [str(RIVAL_PROGRAMS / "supervisord"), "-c", str(config)]
    status = [str(RIVAL_PROGRAMS / "supervisorctl"), "-c", str(config), "status"]
    with _started(started, directory, command, workers) as pid:
        yield Supervisor("supervisord", pid, command, status)


@contextlib.contextmanager
def circus(workers: int, directory: Path) -> Iterator[Supervisor]:
    """Circus with the check delay that its configuration has by default: 5 s."""
    command = _sleep(2)
    config, endpoint = directory / "circus.ini", f"ipc://{directory}/circus.sock"
    config.write_text(f"""\
[circus]
endpoint = {endpoint}
pubsub_endpoint = ipc://{directory}/circus.pub
statsd = false
[watcher:sleeper]
cmd = {" ".join(command)}
numprocesses = {workers}
""")
    started = [str(RIVAL_PROGRAMS / "circusd"), str(config)]
    status = [str(RIVAL_PROGRAMS / "circusctl"), "--endpoint", endpoint, "status"]
    with _started(started, directory, command, workers) as pid:
        yield Supervisor("circus", pid, command, status, period_s=5.0)


STARTERS = {"gpuward": gpuward, "supervisord": supervisord, "circus": circus}


def _sleep(which: int) -> list[str]:
    """A worker's command that no other program on this machine has: about 11 days, told apart by our pid."""
    return ["/bin/sleep", str(10_000_000 * (1 + which) + os.getpid())]


@contextlib.contextmanager
def _started(command: list[str], directory: Path, worker_command: list[str], workers: int) -> Iterator[int]:
    log = directory / "supervisor.log"
    with log.open("wb") as out:
        daemon = subprocess.Popen(
            command, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        outside.wait_for_count(worker_command, workers, UP_WITHIN_S)
        yield daemon.pid
    except outside.TookTooLong as late:
        late.add_note(f"last lines of {log.name}: {log.read_text(errors='replace')[-2000:]}")
        raise
    finally:
        _stop(daemon, worker_command)


def _stop(daemon: subprocess.Popen[bytes], worker_command: list[str]) -> None:
    """End the daemon, then whatever it left of its workers."""
    daemon.terminate()
    try:
        daemon.wait(DOWN_WITHIN_S)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
    for pid in outside.running(worker_command):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
