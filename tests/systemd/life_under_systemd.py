"""Runs inside a private systemd: installs the shipped files, lives through a daemon's day, prints what it saw as JSON.

Not a test: `test_life_under_systemd` boots the systemd, runs this once and judges what it printed.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from grp import getgrgid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
RUN = Path("/run/gpuward")
FLEET = """\
[pool.sleeper]
engine = "command"
command = ["/bin/sh", "-c", "trap 'sleep 0.5; exit 0' TERM; while :; do sleep 0.1; done"]
workers = 2
gpus-per-worker = 1
ready-after-s = 0.0
"""
DROP_IN = """\
[Service]
ExecStart=
ExecStart={gpuward} run --config /etc/gpuward/gpuward.toml --fleet /etc/gpuward/fleet.toml --simulate 2xH100-80GB
WatchdogSec=2s
RestartSec=100ms
"""
WITHIN_S = 15.0
FLEET_FILE = Path("/etc/gpuward/fleet.toml")
DROP_IN_FILE = Path("/etc/systemd/system/gpuward.service.d/test.conf")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def gpuctl(*arguments: str, user: str = "root") -> int:
    return run("runuser", "-u", user, "--", PROGRAMS / "gpuctl", *arguments).returncode


def shown(key: str) -> str:
    return run("systemctl", "show", "-P", key, "gpuward").stdout.strip()


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def worker_pids() -> list[int]:
    """Main pids of all workers by name; empty as long as not all of them are ready."""
    asked = run(PROGRAMS / "gpuctl", "status", "-o", "json")
    workers = json.loads(asked.stdout)["workers"] if asked.returncode == 0 else []
    return [worker["pid"] for worker in workers] if all(worker["ready"] for worker in workers) else []


def owner(path: Path) -> str:
    stat = path.stat()
    return f"{pwd.getpwuid(stat.st_uid).pw_name}:{getgrgid(stat.st_gid).gr_name} {stat.st_mode & 0o7777:o}"


def install() -> dict[str, Any]:
    """Do what `gpuward install` prints, and what only this test needs: simulated GPUs, its own fleet, two accounts."""
    for path in (ROOT, PROGRAMS, Path(sys.executable).resolve()):
        for parent in path.parents:  # the throw-away copy of root's home, for one, lets nobody else in
            if not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
    installed = run(PROGRAMS / "gpuward", "install", "--systemd")
    again = run(PROGRAMS / "gpuward", "install", "--systemd")
    run("systemd-sysusers", "gpuward.conf").check_returncode()
    run("systemd-tmpfiles", "--create", "gpuward.conf").check_returncode()
    run("systemctl", "daemon-reload").check_returncode()
    enabled = run("systemctl", "enable", "gpuward")
    starts = shown("ExecStart")
    DROP_IN_FILE.parent.mkdir()
    DROP_IN_FILE.write_text(DROP_IN.format(gpuward=PROGRAMS / "gpuward"))
    FLEET_FILE.write_text(FLEET)
    run("useradd", "--system", "--groups", "gpuctl", "on-call").check_returncode()
    run("useradd", "--system", "passer-by").check_returncode()
    run("systemctl", "daemon-reload").check_returncode()
    return {"said": installed.stdout, "again": again.stdout, "starts": starts, "enabled": enabled.returncode}


def uninstall() -> dict[str, Any]:
    """After the day: the fleet was edited, the rest is as it was installed."""
    removed = run(PROGRAMS / "gpuward", "uninstall", "--systemd")
    DROP_IN_FILE.unlink()
    run("systemctl", "daemon-reload")
    found = run("find", "/etc", "/usr/lib/systemd", "/run/systemd", "-name", "*gpuward*", "-not", "-name", "*.d")
    kept = FLEET_FILE.read_text() == FLEET if FLEET_FILE.exists() else False
    left = [path for path in found.stdout.split() if Path(path).is_file() or Path(path).is_symlink()]
    return {"rc": removed.returncode, "said": removed.stdout, "left": left, "kept": kept, "loaded": shown("LoadState")}


def start() -> dict[str, Any]:
    started = run("systemctl", "start", "gpuward")
    if not eventually(lambda: bool(worker_pids())):
        sys.exit(f"no worker became ready: {run('journalctl', '-u', 'gpuward', '-o', 'cat', '-n', '60').stdout}")
    first = worker_pids()[0]
    environment = Path(f"/proc/{first}/environ").read_text().split("\0")
    return {
        "rc": started.returncode,
        "stderr": started.stderr,
        "active": shown("ActiveState"),
        "status_text": shown("StatusText"),
        "workers": worker_pids(),
        "user": owner(Path(f"/proc/{shown('MainPID')}")).split(":")[0],
        "run": owner(RUN),
        "socket": owner(RUN / "control.sock") if (RUN / "control.sock").exists() else "",
        "logs": sorted(str(path) for path in Path("/var/log/gpuward").glob("*/*")),
        "worker_environment": sorted(line.partition("=")[0] for line in environment if line),
        "operator": gpuctl("restart", "sleeper/1", user="on-call"),
        "passer_by": gpuctl("stop", "sleeper/1", user="passer-by"),
    }


def survive(disturb: Callable[[], object], *, new_daemon: bool) -> dict[str, Any]:
    """Disturb the daemon; tell who lived before and after."""
    eventually(lambda: bool(worker_pids()))
    before, daemon = worker_pids(), shown("MainPID")
    disturb()
    settled = eventually(
        lambda: (
            (shown("MainPID") not in ("0", daemon)) == new_daemon
            and shown("ActiveState") == "active"
            and bool(worker_pids())
        )
    )
    return {"settled": settled, "before": before, "after": worker_pids(), "operator": gpuctl("status", user="on-call")}


def stop() -> dict[str, Any]:
    began = time.monotonic()
    texts = set()
    stopping = subprocess.Popen(["systemctl", "stop", "gpuward"])
    while stopping.poll() is None:
        texts.add(shown("StatusText"))
    left = run("pgrep", "-u", "gpuward", "-a").stdout.splitlines()
    ended = {"rc": stopping.returncode, "s": time.monotonic() - began, "result": shown("Result")}
    return {**ended, "left": left, "texts": sorted(texts)}


def bad_host_file() -> dict[str, Any]:
    host_file = Path("/etc/gpuward/gpuward.toml")
    shipped = host_file.read_text()
    host_file.write_text("[no-such-table]\n")
    run("systemctl", "start", "gpuward")
    eventually(lambda: shown("ActiveState") == "failed")
    host_file.write_text(shipped)
    said = run("journalctl", "-u", "gpuward", "-p", "err", "-o", "cat", "-n", "5").stdout
    state = {"active": shown("ActiveState"), "code": shown("ExecMainStatus"), "restarts": shown("NRestarts")}
    return {"state": state, "said_as_error": said}


def journal(*matches: str) -> list[dict[str, Any]]:
    lines = run("journalctl", "-o", "json", "-n", "200", *matches).stdout.splitlines()
    return [json.loads(line) for line in lines]


def lose_a_worker() -> dict[str, Any]:
    """Kill a worker; tell what the journal has under its name, and the scores by which the kernel would choose."""
    eventually(lambda: bool(worker_pids()))
    pid = worker_pids()[0]
    scores = {
        who: int(Path(f"/proc/{of}/oom_score_adj").read_text())
        for who, of in (("worker", pid), ("daemon", shown("MainPID")))
    }
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: bool(journal("WORKER=sleeper/0", "CAUSE=crash")))
    eventually(lambda: bool(worker_pids()) and worker_pids()[0] != pid)
    return {
        "scores": scores,
        "crash": journal("WORKER=sleeper/0", "CAUSE=crash"),
        "warnings": journal("WORKER=sleeper/0", "-p", "warning"),
        "all": journal("WORKER=sleeper/0"),
    }


def signal_daemon(number: signal.Signals) -> None:
    os.kill(int(shown("MainPID")), number)


def main() -> None:
    seen = {"install": install(), "start": start()}
    seen["lost_worker"] = lose_a_worker()
    seen["reload"] = survive(lambda: run("systemctl", "reload", "gpuward"), new_daemon=False)
    seen["restart"] = survive(lambda: run("systemctl", "restart", "gpuward"), new_daemon=True)
    seen["crash"] = survive(lambda: signal_daemon(signal.SIGKILL), new_daemon=True)
    seen["watchdog"] = survive(lambda: signal_daemon(signal.SIGSTOP), new_daemon=True)
    seen["stop"] = stop()
    seen["bad_host_file"] = bad_host_file()
    seen["journal"] = {"tail": run("journalctl", "-u", "gpuward", "-o", "cat", "-n", "60").stdout.splitlines()}
    seen["uninstall"] = uninstall()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
