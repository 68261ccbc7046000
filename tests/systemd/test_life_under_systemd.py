"""The shipped unit, users and directories under a real systemd: who survives what, and who may do what."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.systemd.private import NEEDS_A_BOOT, run_inside

pytestmark = NEEDS_A_BOOT


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One boot, one daemon's day, what was seen of it: by whichever test process comes first, for all of them."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (folder / "day.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = folder / "day.json"
        if not record.exists():
            record.write_text(run_inside("life_under_systemd.py"))
    seen: dict[str, Any] = json.loads(record.read_text())
    print(*seen["journal"]["tail"], sep="\n")
    return seen


def test_the_unit_becomes_active_and_says_what_it_does(seen) -> None:
    assert (seen["start"]["rc"], seen["start"]["active"]) == (0, "active"), seen["start"]["stderr"]
    assert seen["start"]["status_text"]
    assert len(seen["start"]["workers"]) == 2


def test_the_daemon_runs_as_its_own_user(seen) -> None:
    assert seen["start"]["user"] == "gpuward"


def test_a_worker_does_not_inherit_what_systemd_told_the_daemon(seen) -> None:
    systemd_talk = {"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "JOURNAL_STREAM"}

    assert systemd_talk.isdisjoint(seen["start"]["worker_environment"])
    assert {"TMPDIR", "XDG_CACHE_HOME"} <= set(seen["start"]["worker_environment"])


def test_the_socket_and_its_directory_belong_to_the_operators(seen) -> None:
    assert seen["start"]["run"] == "gpuward:gpuctl 750"
    assert seen["start"]["socket"].startswith("gpuward:gpuctl ")


def test_a_member_of_gpuctl_may_restart_a_worker_and_a_passer_by_may_not_stop_one(seen) -> None:
    unreachable, not_permitted = 5, 7

    assert seen["start"]["operator"] == 0
    assert seen["start"]["passer_by"] in (unreachable, not_permitted)


@pytest.mark.parametrize("disturbance", ["reload", "restart", "crash", "watchdog"])
def test_every_worker_survives(seen, disturbance: str) -> None:
    day = seen[disturbance]

    assert day["settled"]
    assert len(day["before"]) == 2
    assert day["after"] == day["before"]


@pytest.mark.parametrize("disturbance", ["reload", "restart", "crash", "watchdog"])
def test_operators_still_reach_the_socket_after(seen, disturbance: str) -> None:
    assert seen[disturbance]["operator"] == 0


def test_a_stop_leaves_no_process_of_the_user(seen) -> None:
    assert (seen["stop"]["rc"], seen["stop"]["result"], seen["stop"]["left"]) == (0, "success", [])


def test_while_it_stops_the_unit_says_what_it_waits_for(seen) -> None:
    assert "stopping: 2 of 2 workers still run: sleeper/0, sleeper/1" in seen["stop"]["texts"]


def test_workers_write_where_the_unit_has_logs_kept(seen) -> None:
    assert seen["start"]["logs"] == ["/var/log/gpuward/sleeper/0", "/var/log/gpuward/sleeper/1"]


def test_a_bad_host_file_fails_the_unit_once_without_a_restart_loop(seen) -> None:
    assert seen["bad_host_file"]["state"] == {"active": "failed", "code": "78", "restarts": "0"}


def test_what_keeps_the_daemon_from_starting_is_an_error_in_the_journal(seen) -> None:
    assert "no-such-table" in seen["bad_host_file"]["said_as_error"]


def test_installing_puts_the_unit_in_place_with_the_program_it_was_called_as(seen) -> None:
    program = Path(sys.executable).parent / "gpuward"

    assert "Next:" in seen["install"]["said"]
    assert f"path={program} " in seen["install"]["starts"]
    assert seen["install"]["enabled"] == 0


def test_installing_twice_changes_nothing(seen) -> None:
    assert "Nothing to do." in seen["install"]["again"]
    assert "installed " not in seen["install"]["again"]


def test_uninstalling_leaves_the_edited_fleet_and_nothing_else(seen) -> None:
    assert seen["uninstall"]["rc"] == 0, seen["uninstall"]
    assert seen["uninstall"]["kept"]
    assert seen["uninstall"]["left"] == []
    assert seen["uninstall"]["loaded"] == "not-found"


def test_the_journal_finds_a_worker_and_a_cause_by_field_with_its_priority(seen) -> None:
    crash, *_ = seen["lost_worker"]["crash"]

    assert (crash["WORKER"], crash["CAUSE"], crash["PRIORITY"]) == ("sleeper/0", "crash", "4")
    assert (crash["_SYSTEMD_UNIT"], crash["_TRANSPORT"]) == ("gpuward.service", "journal")
    assert crash["KIND"].startswith("worker-")
    assert int(crash["RUN"]) >= 1


def test_a_worker_that_starts_well_is_no_warning(seen) -> None:
    priorities = {event["KIND"]: event["PRIORITY"] for event in seen["lost_worker"]["all"]}

    assert priorities["worker-ready"] == "6"
    assert {event["PRIORITY"] for event in seen["lost_worker"]["warnings"]} == {"4"}


def test_the_kernel_would_kill_a_worker_before_the_daemon(seen) -> None:
    scores = seen["lost_worker"]["scores"]

    assert scores["worker"] >= 200 > scores["daemon"]
