"""One operation at a time for each worker: whatever is asked together, one process or none, and an answer for each."""

from __future__ import annotations

import statistics
import time

import pytest
from tests.e2e.cases.scripts import CRASHES, SLEEPS, command, outcome, pools, python
from tests.e2e.daemon import DaemonUnderTest

pytestmark = pytest.mark.e2e

ENDS_SLOWLY = f"signal.signal(15, lambda *_: (time.sleep(0.5), os._exit(0))); {SLEEPS}"


def test_two_restarts_at_once_are_one_and_both_callers_are_told(daemon: DaemonUnderTest) -> None:
    daemon.start(pools(w={"command": python(ENDS_SLOWLY)}))
    daemon.all_ready()

    asked = [command(daemon, "restart", "w/0"), command(daemon, "restart", "w")]
    ends = [outcome(daemon, operation)["state"] for operation in asked]

    worker = daemon.worker("w/0")
    assert (ends, worker["run"], worker["restarts"]) == (["done", "done"], 2, 1)
    assert len(daemon.left()) == 1


def test_a_restart_of_a_worker_that_a_restart_has_just_started_serves_both_callers(daemon: DaemonUnderTest) -> None:
    daemon.start(pools(w={"command": python(SLEEPS), "ready-after-s": 0.7}))
    daemon.all_ready()

    first = command(daemon, "restart", "w/0")
    daemon.until("w/0", lambda worker: worker["run"] == 2 and worker["phase"] == "starting")
    second = command(daemon, "restart", "w/0")

    assert [outcome(daemon, one)["state"] for one in (first, second)] == ["done", "done"]
    assert daemon.worker("w/0")["run"] == 3


def test_a_stop_during_a_restart_is_the_last_word(daemon: DaemonUnderTest) -> None:
    daemon.start(pools(w={"command": python(ENDS_SLOWLY)}))
    daemon.all_ready()

    restart = command(daemon, "restart", "w/0")
    stop = command(daemon, "stop", "w/0")
    ends = [outcome(daemon, restart), outcome(daemon, stop)]

    assert [end["state"] for end in ends] == ["failed", "done"]
    assert ends[0]["workers"][0]["reason"] == f"superseded by {stop}: it is stopped now"
    assert (daemon.worker("w/0")["phase"], daemon.left()) == ("stopped", ())


def test_a_start_during_a_stop_ends_up_running_once(daemon: DaemonUnderTest) -> None:
    daemon.start(pools(w={"command": python(ENDS_SLOWLY)}))
    daemon.all_ready()

    stop = command(daemon, "stop", "w/0")
    start = command(daemon, "start", "w/0")
    ends = [outcome(daemon, stop)["state"], outcome(daemon, start)["state"]]

    assert ends == ["failed", "done"]
    assert (daemon.worker("w/0")["run"], len(daemon.left())) == (2, 1)


def test_scaling_while_an_applied_fleet_still_starts_serves_both_callers(daemon: DaemonUnderTest) -> None:
    daemon.start()
    fleet = pools(w={"command": python(SLEEPS), "ready-after-s": 0.5, "workers": 2})

    applied = daemon.call("apply", {"text": fleet, "name": "f.toml", "directory": "/"})["operation"]
    scaled = daemon.call("scale", {"pool": "w", "workers": 3})["operation"]
    ends = [outcome(daemon, one)["state"] for one in (applied, scaled)]

    assert ends == ["done", "done"]
    assert [(name, worker["run"]) for name, worker in daemon.workers().items()] == [("w/0", 1), ("w/1", 1), ("w/2", 1)]


def test_a_worker_that_is_scaled_away_while_it_starts_is_told_to_who_applied_it(daemon: DaemonUnderTest) -> None:
    daemon.start()
    fleet = pools(w={"command": python(SLEEPS), "ready-after-s": 0.5, "workers": 2})

    applied = daemon.call("apply", {"text": fleet, "name": "f.toml", "directory": "/"})["operation"]
    scaled = daemon.call("scale", {"pool": "w", "workers": 1})["operation"]
    ends = [outcome(daemon, one) for one in (applied, scaled)]

    assert [end["state"] for end in ends] == ["failed", "done"]
    assert {step["name"]: step["state"] for step in ends[0]["workers"]} == {"w/0": "done", "w/1": "failed"}
    assert list(daemon.workers()) == ["w/0"]


def test_a_start_that_fails_answers_with_the_reason_and_the_lines_that_prove_it(daemon: DaemonUnderTest) -> None:
    keys = {"command": python(CRASHES), "restart": {"delay-first-s": 30, "delay-max-s": 30}}
    daemon.start(pools(w=keys))
    daemon.until("w/0", lambda worker: worker["phase"] == "backoff")

    ended = outcome(daemon, command(daemon, "start", "w/0"))
    shown = daemon.ctl("start", "w/0")

    step = ended["workers"][0]
    assert (ended["state"], step["phase"]) in {("failed", "backoff"), ("failed", "releasing")}
    assert "code 3" in step["reason"] or "KeyError" in step["reason"]
    assert any("KeyError: no such layer" in line for line in step["evidence"])
    assert shown.returncode == 1
    assert "cannot start w/0" in shown.stderr
    assert "KeyError: no such layer" in shown.stderr


def test_the_daemon_answers_at_once_while_workers_cannot_be_started(daemon: DaemonUnderTest) -> None:
    broken = {"command": ["/no/such/program"], "workers": 8}
    crashing = {"command": python(CRASHES), "workers": 2, "restart": {"delay-first-s": 0.01, "delay-max-s": 0.01}}
    daemon.start(pools(broken=broken, crashing=crashing))
    spent_s = []

    for _ in range(12):
        daemon.call("start", {"targets": ["broken"]})
        asked_s = time.perf_counter()
        daemon.call("status")
        spent_s.append(time.perf_counter() - asked_s)

    failed = daemon.until("broken/7", lambda worker: worker["phase"] == "failed")
    assert "No such file or directory" in failed["reason"]
    assert (
        statistics.median(spent_s) < 0.5
    )  # 2 to 5 ms on an idle machine; a daemon that waits for spawns needs seconds
