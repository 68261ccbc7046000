"""Runs inside a private systemd: installs the shipped files, lives through a daemon's day, prints what it saw as JSON.

Not a test: `test_life_under_systemd` boots the systemd, runs this once and judges what it printed.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
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
command = ["/bin/sleep", "1000000"]
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


def install() -> None:
    """Do what the README tells an administrator, from the shipped files."""
    for name in ("gpuward.sysusers.conf", "gpuward.tmpfiles.conf", "gpuward.service"):
        shutil.copy(ROOT / "systemd" / name, "/run/systemd/system" if name.endswith("service") else "/run")
    run("systemd-sysusers", "/run/gpuward.sysusers.conf").check_returncode()
    run("systemd-tmpfiles", "--create", "/run/gpuward.tmpfiles.conf").check_returncode()
    drop_in = Path("/run/systemd/system/gpuward.service.d/test.conf")
    drop_in.parent.mkdir()
    drop_in.write_text(DROP_IN.format(gpuward=PROGRAMS / "gpuward"))
    Path("/etc/gpuward/fleet.toml").write_text(FLEET)
    Path("/etc/gpuward/gpuward.toml").write_text("")
    run("useradd", "--system", "--groups", "gpuctl", "on-call").check_returncode()
    run("useradd", "--system", "passer-by").check_returncode()
    for path in (ROOT, PROGRAMS, Path(sys.executable).resolve()):
        for parent in path.parents:  # the throw-away copy of root's home, for one, lets nobody else in
            if not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
    run("systemctl", "daemon-reload").check_returncode()


def start() -> dict[str, Any]:
    started = run("systemctl", "start", "gpuward")
    eventually(lambda: bool(worker_pids()))
    first = worker_pids()[0] if worker_pids() else os.getpid()
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
    stopped = run("systemctl", "stop", "gpuward")
    left = run("pgrep", "-u", "gpuward", "-a").stdout.splitlines()
    return {"rc": stopped.returncode, "s": time.monotonic() - began, "left": left, "result": shown("Result")}


def bad_host_file() -> dict[str, Any]:
    Path("/etc/gpuward/gpuward.toml").write_text("[no-such-table]\n")
    run("systemctl", "start", "gpuward")
    eventually(lambda: shown("ActiveState") == "failed")
    return {"active": shown("ActiveState"), "code": shown("ExecMainStatus"), "restarts": shown("NRestarts")}


def signal_daemon(number: signal.Signals) -> None:
    os.kill(int(shown("MainPID")), number)


def main() -> None:
    install()
    seen = {"start": start()}
    seen["reload"] = survive(lambda: run("systemctl", "reload", "gpuward"), new_daemon=False)
    seen["restart"] = survive(lambda: run("systemctl", "restart", "gpuward"), new_daemon=True)
    seen["crash"] = survive(lambda: signal_daemon(signal.SIGKILL), new_daemon=True)
    seen["watchdog"] = survive(lambda: signal_daemon(signal.SIGSTOP), new_daemon=True)
    seen["stop"] = stop()
    seen["bad_host_file"] = bad_host_file()
    seen["journal"] = {"tail": run("journalctl", "-u", "gpuward", "-o", "cat", "-n", "60").stdout.splitlines()}
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
