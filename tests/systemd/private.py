"""Runs a script in a private systemd, which `boot_systemd` beside this file boots; tells where none can be booted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HARNESS = Path(__file__).with_name("boot_systemd")
NO_BOOT = 125

NEEDS_A_BOOT = [
    pytest.mark.systemd,
    pytest.mark.root,
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can boot a private systemd"),
    pytest.mark.skipif(not shutil.which("systemctl"), reason="systemd is not installed (Debian: systemd dbus)"),
]


def run_inside(script: str) -> str:
    """Return what a script beside this file prints; a test that needs it is skipped where nothing can be booted."""
    # `timeout` ends the harness by SIGTERM, upon which it cleans up; subprocess would kill it.
    ended = subprocess.run(
        ["timeout", "--kill-after=15", "150", HARNESS, sys.executable, Path(__file__).with_name(script)],
        cwd=ROOT, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    if ended.returncode == NO_BOOT:
        pytest.skip(f"no private systemd here: {ended.stderr.strip()}")
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
