"""Boots a private systemd in namespaces by the wrapper `with-systemd` (shared/tools) and runs a script in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WRAPPER = ROOT.parent / "shared/tools/with-systemd"
NO_BOOT = 125

NEEDS_A_BOOT = [
    pytest.mark.systemd,
    pytest.mark.root,
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not WRAPPER.exists(), reason="shared/tools/with-systemd is not there"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can boot a private systemd"),
    pytest.mark.skipif(not shutil.which("systemctl"), reason="systemd is not installed (Debian: systemd dbus)"),
]


def run_inside(script: str, **more: str) -> str:
    """Return what a script beside this file prints; a test that needs it is skipped where nothing can be booted."""
    ended = subprocess.run(
        [WRAPPER, sys.executable, Path(__file__).with_name(script)],
        env={**os.environ, "WS_BIND": str(ROOT), "WS_TIMEOUT": "150", **more},
        cwd=ROOT, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    if ended.returncode == NO_BOOT:
        pytest.skip(f"no private systemd here: {ended.stderr.strip()}")
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
