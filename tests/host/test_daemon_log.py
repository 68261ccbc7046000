"""The daemon's log in a process of its own: what it writes where, by what standard error is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.host.test_journald import fields_of

from gpuward.host.daemon_log import journal_message

LOGS = """
import sys
from gpuward.host.daemon_log import open_log
open_log("info", sys.argv[1])[0].warning("worker-backoff", worker="decode/0", run=3, cause="hang", reason="waits 2 s")
"""


def logged(style: str) -> list[str]:
    ran = subprocess.run([sys.executable, "-c", LOGS, style], capture_output=True, text=True, timeout=30, check=True)
    return ran.stderr.splitlines()


def test_an_event_in_the_journal_has_its_fields_and_its_priority() -> None:
    event = {"event": "worker-backoff", "level": "warning", "worker": "decode/0", "run": 3, "reason": "waits 2 s"}

    assert fields_of(journal_message(None, "warning", event)) == {
        "MESSAGE": "worker-backoff decode/0: waits 2 s",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "gpuward",
        "KIND": "worker-backoff",
        "WORKER": "decode/0",
        "RUN": "3",
    }


@pytest.mark.parametrize(("level", "priority"), [("debug", "7"), ("info", "6"), ("error", "3"), ("critical", "2")])
def test_levels_are_the_priorities_of_syslog(level: str, priority: str) -> None:
    assert fields_of(journal_message(None, level, {"event": "stopped"}))["PRIORITY"] == priority


def test_a_pipe_gets_one_json_object_a_line() -> None:
    (line,) = logged("auto")

    event = json.loads(line)
    assert (event["event"], event["level"], event["worker"], event["run"]) == (
        "worker-backoff",
        "warning",
        "decode/0",
        3,
    )
    assert event["timestamp"].endswith("Z")


def test_console_is_for_the_eye() -> None:
    (line,) = logged("console")

    assert "worker-backoff" in line
    assert "reason='waits 2 s'" in line
