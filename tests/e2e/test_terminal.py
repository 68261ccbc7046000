"""What the daemon says on a terminal where it cannot start."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest
from tests.e2e.daemon import PROGRAM

pytestmark = pytest.mark.e2e


def test_a_refusal_to_start_is_broken_between_words_on_a_terminal(tmp_path: Path) -> None:
    ours, its = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80"}
    command = [PROGRAM, "run", "--simulate", "8xABACUS", "--socket", tmp_path / "s"]
    command += ["--state-dir", tmp_path / "st", "--runtime-dir", tmp_path / "rt"]

    refused = subprocess.run(command, stderr=its, env=environment, timeout=30, check=False)
    os.close(its)
    told = os.read(ours, 65536).decode()
    os.close(ours)

    assert refused.returncode == 78
    assert max(map(len, told.splitlines())) <= 80
    assert "bad GPU specification '8xABACUS'" in " ".join(told.split())
