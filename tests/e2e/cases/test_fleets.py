"""Dependencies between pools, changes of the fleet, and a clock that is stepped."""

from __future__ import annotations

import pytest
from tests.e2e.cases.scripts import CRASHES, FAILS_AT_ONCE, SLEEPS, pools, python
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

pytestmark = pytest.mark.e2e

STEPPED_CLOCK = """
import time
_real = time.time
def _stepped():
    try:
        return _real() + float(open({path!r}).read() or 0)
    except OSError:
        return _real()
time.time = _stepped
"""


def test_dependents_wait_while_what_they_need_starts_anew_and_start_when_it_is_ready(daemon: DaemonUnderTest) -> None:
    flag = daemon.root / "healthy"
    fickle = f"if not os.path.exists('{flag}'): sys.exit(1)\n{SLEEPS}"
    patient = {"max-failures": 100, "delay-first-s": 0.1, "delay-max-s": 0.1}
    daemon.start(
        pools(
            a={"command": python(fickle), "restart": patient},
            b={"command": python(SLEEPS), "depends-on": ["a"]},
        )
    )
    daemon.until("a/0", lambda worker: worker["restarts"] >= 2)

    waiting = daemon.worker("b/0")
    flag.touch()
    ready = daemon.all_ready()

    assert (waiting["phase"], waiting["run"]) == ("blocked", 0)
    assert waiting["reason"].startswith("waits for a/0 to be ready")
    assert ready["b/0"]["run"] == 1


def test_dependents_of_a_worker_that_has_given_up_say_so(daemon: DaemonUnderTest) -> None:
    daemon.start(
        pools(
            a={"command": python(CRASHES), "restart": FAILS_AT_ONCE},
            b={"command": python(SLEEPS), "depends-on": ["a"]},
        )
    )
    daemon.until("a/0", lambda worker: worker["phase"] == "failed")

    blocked = daemon.until("b/0", lambda worker: "which has failed" in worker["reason"])

    assert (blocked["phase"], blocked["run"]) == ("blocked", 0)
    assert blocked["reason"].startswith("waits for a/0, which has failed: ")


def test_an_applied_fleet_touches_only_the_workers_that_it_changes(daemon: DaemonUnderTest) -> None:
    before = {"command": python(SLEEPS)}
    daemon.start(pools(same=before, changed=before, removed=before, grown=before))
    pids = {name: worker["pid"] for name, worker in daemon.all_ready().items()}

    changed = pools(
        same=before, changed={"command": python(f"{SLEEPS}  # new")}, grown={**before, "workers": 2}, added=before
    )
    daemon.call("apply", {"text": changed, "name": "f.toml", "directory": "/", "prune": True})
    eventually(lambda: "removed/0" not in daemon.workers(), within_s=10)
    daemon.until("changed/0", lambda worker: worker["run"] == 2 and worker["ready"])
    after = daemon.all_ready()

    assert {name: worker["run"] for name, worker in after.items()} == {
        "same/0": 1,
        "changed/0": 2,
        "grown/0": 1,
        "grown/1": 1,
        "added/0": 1,
    }
    assert {name for name, worker in after.items() if worker["pid"] == pids.get(name)} == {"same/0", "grown/0"}


def test_what_is_not_there_is_said_with_what_is(daemon: DaemonUnderTest) -> None:
    daemon.start(pools(first={"command": python(SLEEPS)}, empty={"command": python(SLEEPS), "workers": 0}))
    daemon.all_ready()

    answers = {
        words: daemon.ctl(*words.split())
        for words in ("logs first/0 --run 7", "events nobody", "start empty", "scale frist=2", "scale first=99999")
    }
    known = [daemon.ctl(*words.split()) for words in ("logs first/0 --run 1", "events empty")]

    assert {words: (answer.returncode, answer.stdout, answer.stderr) for words, answer in answers.items()} == {
        "logs first/0 --run 7": (
            4,
            "",
            "gpuctl: there is no log of run 7 of first/0; kept are those of runs 1\n",
        ),
        "events nobody": (4, "", "gpuctl: nothing is known of a worker 'nobody'; there are first/0\n"),
        "start empty": (6, "", "gpuctl: pool 'empty' has no workers; gpuctl scale empty=1 gives it one\n"),
        "scale frist=2": (4, "", "gpuctl: there is no pool 'frist'; there are first, empty\n"),
        "scale first=99999": (2, "", "gpuctl: cannot run scale: workers: expected int <= 10000\n"),
    }
    assert [answer.returncode for answer in known] == [0, 0]


@pytest.mark.parametrize("step_s", [3600, -3600], ids=["forth", "back"])
def test_a_stepped_clock_kills_nobody_and_loses_no_wait(daemon: DaemonUnderTest, step_s: int) -> None:
    clock = daemon.root / "clock"
    daemon.write("sitecustomize.py", STEPPED_CLOCK.format(path=str(clock)))
    known = daemon.environment.get("PYTHONPATH")
    daemon.environment["PYTHONPATH"] = f"{daemon.root}:{known}" if known else str(daemon.root)
    waits = {"command": python(CRASHES), "restart": {"delay-first-s": 1.5, "delay-max-s": 1.5, "max-failures": 9}}
    daemon.start(
        pools(
            ready={"command": python(SLEEPS)},
            starting={"command": python(SLEEPS), "ready-after-s": 60.0, "start-timeout-s": 100.0},
            waits=waits,
        )
    )
    daemon.until("ready/0", lambda worker: worker["ready"])
    before = daemon.until("waits/0", lambda worker: worker["phase"] == "backoff" and worker["next_start_at"])

    clock.write_text(str(step_s))
    stepped = daemon.worker("waits/0")
    again = daemon.until("waits/0", lambda worker: worker["run"] == before["run"] + 1, within_s=5)

    assert stepped["next_start_at"][11:13] != before["next_start_at"][11:13], "the clock was not stepped"
    assert stepped["run"] == before["run"]
    assert again["last_exit"]["cause"] == "crash"
    others = daemon.workers()
    assert [(others[name]["run"], others[name]["phase"]) for name in ("ready/0", "starting/0")] == [
        (1, "ready"),
        (1, "starting"),
    ]
