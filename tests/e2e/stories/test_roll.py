"""Stories of a pool that gets another definition worker by worker: it works, it fails, the daemon dies meanwhile."""

from __future__ import annotations

import json

import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

pytestmark = pytest.mark.e2e

POOL = """
[pool.m]
engine = "command"
command = ["/bin/sh", "-c", '[ "$BREAKS" != {index} ] || {{ echo "ValueError: no"; exit 1; }}; exec sleep 600']
gpus-per-worker = 1
workers = 3
ready-after-s = 0.2
stop-timeout-s = 5
"""


def the_pool(breaks: str) -> str:
    """The pool in which the worker of that index cannot start."""
    return f'{POOL}[pool.m.env]\nBREAKS = "{breaks}"\n'


def actions_of(daemon: DaemonUnderTest, file: str) -> set[str]:
    """What applying the file would do."""
    changes = json.loads(daemon.ctl("diff", file, "-o", "json").stdout)["changes"]
    return {change["action"] for change in changes}


def kinds_of(daemon: DaemonUnderTest) -> set[str]:
    return {event["kind"] for event in daemon.call("events")["events"]}


def test_another_definition_reaches_one_worker_after_the_other(daemon: DaemonUnderTest) -> None:
    daemon.start(the_pool("nobody"))
    before = daemon.all_ready()
    daemon.write("new.toml", the_pool("none"))

    rolled = daemon.ctl("roll", "m", "new.toml")
    after = daemon.workers()

    assert rolled.returncode == 0, rolled.stderr
    assert [worker["run"] for worker in after.values()] == [2, 2, 2]
    assert [worker["gpus"] for worker in after.values()] == [worker["gpus"] for worker in before.values()]
    assert actions_of(daemon, "new.toml") == {"keep"}


def test_a_roll_that_fails_at_the_second_worker_takes_the_first_back_and_never_touches_the_third(
    daemon: DaemonUnderTest,
) -> None:
    daemon.start(the_pool("nobody"))
    before = daemon.all_ready()
    daemon.write("new.toml", the_pool("1"))

    rolled = daemon.ctl("roll", "m", "new.toml")
    after = daemon.workers()

    assert rolled.returncode == 1
    assert "cannot roll m/1: at m/1: it ended by itself while starting (exit code 1)" in rolled.stderr
    assert "now ready with its earlier definition" in rolled.stderr
    assert {worker["phase"] for worker in after.values()} == {"ready"}
    assert [worker["run"] for worker in after.values()] == [3, 3, 1]
    assert after["m/2"]["pid"] == before["m/2"]["pid"]
    assert actions_of(daemon, "fleet.toml") == {"keep"}


def test_a_daemon_that_dies_in_the_middle_of_a_roll_is_followed_by_one_that_takes_it_back(
    daemon: DaemonUnderTest,
) -> None:
    daemon.start(the_pool("nobody"))
    before = daemon.all_ready()
    daemon.write("new.toml", the_pool("2").replace("ready-after-s = 0.2", "ready-after-s = 1.5"))

    daemon.ctl("roll", "m", "new.toml", "--no-wait")
    eventually(lambda: daemon.workers()["m/1"]["run"] == 2, within_s=15)
    sentences = daemon.call("why", {"worker": "m/2"})["sentences"]
    daemon.kill()
    daemon.start()
    eventually(lambda: "roll-back-done" in kinds_of(daemon), within_s=30)
    after = daemon.all_ready()

    assert any(sentence.startswith("Its pool is ") for sentence in sentences), sentences
    assert [worker["run"] for worker in after.values()] == [3, 3, 3]
    assert [worker["gpus"] for worker in after.values()] == [worker["gpus"] for worker in before.values()]


def test_a_file_that_changes_more_than_the_pool_is_refused_and_nothing_moves(daemon: DaemonUnderTest) -> None:
    daemon.start(the_pool("nobody"))
    before = daemon.all_ready()
    daemon.write("new.toml", the_pool("none").replace("workers = 3", "workers = 4"))

    rolled = daemon.ctl("roll", "m", "new.toml")

    assert rolled.returncode == 6
    assert "m/3: start, new worker on GPU 3: a roll changes pool 'm' alone" in rolled.stderr
    assert [worker["pid"] for worker in daemon.workers().values()] == [worker["pid"] for worker in before.values()]


def test_a_changed_fleet_reaches_running_pools_worker_by_worker_and_the_others_serve(daemon: DaemonUnderTest) -> None:
    daemon.start(the_pool("nobody"))
    daemon.all_ready()
    daemon.write("fleet.toml", the_pool("none"))
    began = daemon.ctl("reload", "--no-wait")

    seen: list[int] = []

    def over() -> bool:
        workers = daemon.workers().values()
        seen.append(sum(worker["ready"] for worker in workers))
        return all(worker["run"] == 2 and worker["ready"] for worker in workers)

    eventually(over, within_s=30, every_s=0.02)

    assert began.returncode == 0, began.stderr
    assert min(seen) >= 2


def test_an_apply_that_fails_at_one_worker_takes_that_pool_back_and_is_a_new_revision(daemon: DaemonUnderTest) -> None:
    daemon.start(the_pool("nobody"))
    before = daemon.all_ready()
    daemon.write("new.toml", the_pool("0"))

    applied = daemon.ctl("apply", "new.toml")
    after = daemon.workers()
    fleet = daemon.call("status")["fleet"]

    assert applied.returncode == 1
    assert "cannot apply m/0: at m/0: it " in applied.stderr
    assert "cannot apply m/1: left as it is: the roll failed" in applied.stderr
    assert (fleet["revision"], fleet["source"]) == (3, "the roll back of new.toml")
    assert {worker["phase"] for worker in after.values()} == {"ready"}
    assert [after[name]["pid"] for name in ("m/1", "m/2")] == [before[name]["pid"] for name in ("m/1", "m/2")]
    assert actions_of(daemon, "fleet.toml") == {"keep"}


def test_update_all_changes_everybody_at_once(daemon: DaemonUnderTest) -> None:
    daemon.start(the_pool("nobody"))
    daemon.all_ready()
    daemon.write("fleet.toml", the_pool("none").replace("[pool.m.env]", 'update = "all"\n[pool.m.env]'))

    daemon.ctl("reload", "--no-wait")
    eventually(lambda: not any(one["ready"] for one in daemon.workers().values()), within_s=15)
    after = daemon.all_ready()

    assert [worker["run"] for worker in after.values()] == [2, 2, 2]


def test_another_apply_in_the_middle_of_a_roll_takes_its_place(daemon: DaemonUnderTest) -> None:
    daemon.start(the_pool("nobody"))
    daemon.all_ready()
    daemon.write("slow.toml", the_pool("none").replace("ready-after-s = 0.2", "ready-after-s = 30"))
    daemon.write("third.toml", the_pool("nobody at all"))

    daemon.ctl("apply", "slow.toml", "--no-wait")
    daemon.until("m/0", lambda worker: worker["run"] == 2)
    applied = daemon.ctl("apply", "third.toml")
    after = daemon.all_ready()

    assert applied.returncode == 0, applied.stderr
    assert [worker["run"] for worker in after.values()] == [3, 2, 2]


def test_a_worker_that_was_rolled_and_dies_while_the_next_is_started_takes_the_pool_back(
    daemon: DaemonUnderTest,
) -> None:
    text = the_pool("nobody").replace("ready-after-s = 0.2", "ready-after-s = 0.7\nmin-ready-s = 0")
    daemon.start(text)
    daemon.all_ready()
    dies_later = text.replace("exec sleep 600", "sleep $(( {index} == 0 ? 1 : 600 )); exit 1")
    daemon.write("new.toml", dies_later.replace('"/bin/sh"', '"/bin/bash"'))

    rolled = daemon.ctl("roll", "m", "new.toml")
    after = daemon.all_ready()

    assert rolled.returncode == 1
    assert "cannot roll m/0: at m/0: " in rolled.stderr
    assert "roll-back-done" in kinds_of(daemon)
    assert [worker["run"] for worker in after.values()][2] == 1


def test_an_apply_of_what_is_being_rolled_to_waits_for_the_roll(daemon: DaemonUnderTest) -> None:
    daemon.start(the_pool("nobody"))
    daemon.all_ready()
    daemon.write("new.toml", the_pool("none"))

    daemon.ctl("apply", "new.toml", "--no-wait")
    again = daemon.ctl("apply", "new.toml")

    assert again.returncode == 0, again.stderr
    assert "nothing to apply: this is revision 2" in again.stdout
    assert [worker["run"] for worker in daemon.workers().values()] == [2, 2, 2]


def test_a_stopped_worker_of_a_changed_pool_is_told_to_stay_stopped(daemon: DaemonUnderTest) -> None:
    daemon.start(the_pool("nobody"))
    daemon.all_ready()
    daemon.ctl("stop", "m/1")
    daemon.write("new.toml", the_pool("none"))

    compared = daemon.ctl("diff", "new.toml").stdout
    applied = daemon.ctl("apply", "new.toml")
    after = daemon.workers()

    assert "2 to restart, 1 unchanged" in compared
    assert "env changed: it is stopped, and starts as that says" in " ".join(compared.split())
    assert (applied.returncode, after["m/1"]["phase"], after["m/1"]["run"]) == (0, "stopped", 1)
