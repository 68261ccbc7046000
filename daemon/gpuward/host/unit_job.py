"""What systemd is about to do with this unit: SIGTERM looks the same for a stop and for a restart."""

from __future__ import annotations

import subprocess
from pathlib import Path

ASK_TIMEOUT_S = 5.0


def unit_name(cgroup: str) -> str | None:
    """The unit that a process belongs to, from the text of /proc/PID/cgroup; None outside of systemd's services."""
    for line in cgroup.splitlines():
        last = line.rpartition("/")[2]
        if last.endswith(".service"):
            return last
    return None


def pending_job() -> str | None:
    """The type of the job that systemd has queued for our unit (``stop``, ``restart``); None where it cannot be known.

    ``systemctl list-jobs`` prints lines of ``NUMBER UNIT TYPE STATE``; systemd 252 shows the job while it waits for us.
    """
    try:
        unit = unit_name(Path("/proc/self/cgroup").read_text())
    except OSError:
        return None
    if unit is None:
        return None
    try:
        listed = subprocess.run(
            ["systemctl", "list-jobs", "--no-legend", "--plain", unit],
            capture_output=True,
            text=True,
            timeout=ASK_TIMEOUT_S,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    for line in listed.splitlines():
        words = line.split()
        if len(words) >= 3 and words[1] == unit:
            return words[2]
    return None
