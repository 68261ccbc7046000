"""The story of keys that a worker is given: it gets them, and nobody is shown them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from tests.e2e.daemon import DaemonUnderTest

pytestmark = pytest.mark.e2e

KEY = "sk-0123456789abcdef"
TELLS_ALL = f"""
[pool.m]
engine = "command"
command = ["/bin/sh", "-c", 'echo "ValueError: $MY_TOKEN and $1 and $DAEMONS_TOKEN are wrong"; exit 1', "sh", "{KEY}-2"]
gpus-per-worker = 0
env = {{MY_TOKEN = "{KEY}-1"}}
extra-args = ["--api-key", "{KEY}-2"]
restart = {{max-failures = 0}}
"""


def test_what_a_worker_prints_of_its_keys_is_masked_wherever_it_is_kept_for_showing(daemon: DaemonUnderTest) -> None:
    daemon.environment["DAEMONS_TOKEN"] = f"{KEY}-3"
    daemon.start(TELLS_ALL)

    failed = daemon.until("m/0", lambda worker: worker["phase"] == "failed")
    shown = [
        daemon.ctl(*words).stdout for words in (("why", "m/0"), ("events",), ("status",), ("status", "-o", "json"))
    ]

    assert "ValueError: *** and *** and *** are wrong" in " ".join(failed["last_exit"]["evidence"])
    assert KEY not in "".join(shown) + daemon.log()
    history = b"".join(path.read_bytes() for path in (daemon.root / "st" / "history").rglob("*.json"))
    assert b"*** and *** and ***" in history
    assert KEY.encode() not in history


def test_state_and_output_are_for_their_owner_alone(daemon: DaemonUnderTest) -> None:
    (daemon.root / "st").mkdir(mode=0o755)
    daemon.start(TELLS_ALL)
    daemon.until("m/0", lambda worker: worker["phase"] == "failed")

    private = [daemon.root / "st", daemon.root / "st" / "logs", daemon.root / "rt" / "runs"]
    files = [path for path in (daemon.root / "st").rglob("*") if path.is_file()]

    assert [stat.S_IMODE(path.stat().st_mode) for path in private] == [0o700] * 3
    assert _read_by_others(files) == []


def _read_by_others(paths: list[Path]) -> list[Path]:
    harmless = {"gpuward.lock", "simulated-host"}
    return [path for path in paths if path.stat().st_mode & 0o077 and path.name not in harmless]
