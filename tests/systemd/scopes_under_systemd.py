"""Runs inside a private systemd as root: a worker in a scope of its own, and one that eats more than its limit.

Not a test: `test_scopes` boots the systemd, runs this once and judges what it printed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpuward.host.cgroups import Cgroups, scopes
from gpuward.host.runs import Runs, RunSpec

MIB = 1024 * 1024
HOG = "x = [bytearray(b'1' * (1 << 20)) for _ in range(1024)]"
CGROUP2 = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
SLEEPER = "import signal; signal.pause()"


def start(runs: Runs, cgroups: Cgroups, worker: str, code: str) -> int:
    seat = cgroups.seat(worker, 1, 96 * MIB)
    spec = RunSpec(
        worker=worker, run=1, argv=(sys.executable, "-I", "-S", "-c", code), environment={}, working_directory="/",
        leases=(), share=False, log=runs.root / "log", log_max_bytes=MIB, gpu_uuids=(), port=None,
        marker=f"GPUWARD_TEST={worker}", seat=seat,
    )  # fmt: skip
    return runs.start(spec).keeper_pid


def cgroup_of(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line[3:] for line in lines if line.startswith("0::"))


def main_pid(runs: Runs, worker: str) -> int:
    deadline = time.monotonic() + 10
    while (main := runs.main_identity(worker, 1)) is None:
        if time.monotonic() > deadline:
            sys.exit(f"{worker} was not started: {runs.stillborn(worker, 1)}")
        time.sleep(0.01)
    return main.pid


def main() -> None:
    runs = Runs(Path(tempfile.mkdtemp()) / "runs")
    runs.prepare()
    cgroups = scopes(next(path for path in CGROUP2 if (path / "cgroup.procs").exists()))
    began = time.monotonic()
    keeper = start(runs, cgroups, "sleeper/0", SLEEPER)
    sleeper = main_pid(runs, "sleeper/0")
    seen: dict[str, Any] = {
        "refusal": cgroups.refusal,
        "started_s": time.monotonic() - began,
        "worker": cgroup_of(sleeper),
        "keeper": cgroup_of(keeper),
        "kept": runs.is_kept("sleeper/0"),
        "same_pid": runs.keeper_identity("sleeper/0", 1).pid == keeper,  # type: ignore[union-attr]
        "limit": subprocess.run(
            ["systemctl", "show", "-P", "MemoryMax", "gpuward-sleeper.0.1.scope"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip(),
    }
    os.waitpid(start(runs, cgroups, "hog/0", HOG), 0)
    os.kill(sleeper, 9)
    os.waitpid(keeper, 0)
    for worker in ("hog/0", "sleeper/0"):
        ending = runs.ending(worker, 1)
        seen[worker] = asdict(ending) if ending else runs.stillborn(worker, 1)
    left = "gpuward"
    deadline = time.monotonic() + 5
    while left and time.monotonic() < deadline:
        left = subprocess.run(
            ["systemctl", "list-units", "--all", "--plain", "--no-legend", "gpuward-*"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    print(json.dumps({**seen, "left": left}))


if __name__ == "__main__":
    main()
