"""What a daemon makes of what an earlier one left, with real processes: no worker notices, whatever was lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

pytestmark = pytest.mark.e2e

RESTART = "[pool.{0}.restart]\ndelay-first-s = 0.05\ndelay-max-s = 0.05\n"
SLEEPER = """
[pool.{0}]
engine = "command"
command = ["/bin/sh", "-c", "setsid sleep 1000 & exec sleep 1000"]
gpus-per-worker = 1
workers = {1}
ready-after-s = 0.05
"""


def sleepers(name: str = "s", workers: int = 2, keys: str = "") -> str:
    return SLEEPER.format(name, workers) + keys + RESTART.format(name)


def pids(daemon: DaemonUnderTest) -> dict[str, int]:
    return {name: worker["pid"] for name, worker in daemon.all_ready().items()}


def events(daemon: DaemonUnderTest, kind: str) -> list[str]:
    page = daemon.call("events", {"limit": 1000})
    return [event["reason"] for event in page["events"] if event["kind"] == kind]


def record(daemon: DaemonUnderTest, worker: str) -> Path:
    return daemon.root / "st" / "workers" / f"{worker}.json"


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped by a careless init does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def rewrite(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_run_of_a_definition_that_changed_meanwhile_is_told_and_rolled(daemon: DaemonUnderTest) -> None:
    daemon.start(sleepers("a") + sleepers("b", workers=1))
    before = pids(daemon)
    daemon.kill()
    rewrite(daemon.root / "st" / "fleet.json", lambda fleet: fleet["fleet"]["pools"][1].update(env={"A": "1"}))  # type: ignore[index]

    daemon.start()
    rolled = daemon.until("b/0", lambda worker: worker["run"] == 2 and worker["ready"])

    after = pids(daemon)
    assert {name: after[name] for name in ("a/0", "a/1")} == {name: before[name] for name in ("a/0", "a/1")}
    assert rolled["last_exit"]["cause"] == "commanded"
    assert len(events(daemon, "definition-changed")) == 1
    assert "env changed" in events(daemon, "definition-changed")[0]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, 40),
    "empty": lambda path: os.truncate(path, 0),
    "garbage": lambda path: path.write_bytes(b"\xff\0garbage{{{" * 100),
    "of a future version": lambda path: rewrite(path, lambda record: record.update(version=99)),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_worker_notices_that_its_record_and_the_fleet_are(daemon: DaemonUnderTest, damage: str) -> None:
    daemon.start(sleepers(workers=3))
    daemon.all_ready()
    daemon.call("restart", {"targets": ["s/0"]})
    daemon.until("s/0", lambda worker: worker["run"] == 2 and worker["ready"])
    daemon.call("stop", {"targets": ["s/2"]})
    daemon.until("s/2", lambda worker: worker["phase"] == "stopped")
    before = daemon.workers()
    daemon.kill()
    for path in (record(daemon, "s/0"), record(daemon, "s/2"), daemon.root / "st" / "fleet.json"):
        DAMAGES[damage](path)

    daemon.start(sleepers(workers=3))
    after = daemon.until("s/0", lambda worker: worker["ready"])

    assert (after["pid"], after["run"], after["restarts"]) == (before["s/0"]["pid"], 2, 0)
    assert daemon.worker("s/1")["pid"] == before["s/1"]["pid"]
    assert (daemon.worker("s/2")["phase"], daemon.worker("s/2")["goal"]) == ("stopped", "down")
    notices = " ".join(daemon.call("status")["daemon"]["notices"])
    assert damage == "deleted" or all(word in notices for word in ("workers/s/0.json", "fleet.json"))


def test_without_fleet_and_without_file_what_runs_is_the_fleet(daemon: DaemonUnderTest) -> None:
    daemon.start(sleepers())
    before = pids(daemon)
    daemon.kill()
    shutil.rmtree(daemon.root / "st")

    daemon.start()
    after = pids(daemon)
    notices = daemon.call("status")["daemon"]["notices"]
    os.kill(after["s/1"], signal.SIGKILL)
    daemon.until("s/1", lambda worker: worker["run"] == 2 and worker["ready"])

    assert after == before
    assert any("what runs is the fleet now: s x 2" in notice for notice in notices)


def test_a_bad_file_is_no_reason_to_leave_alone_what_runs(daemon: DaemonUnderTest) -> None:
    daemon.start(sleepers())
    before = pids(daemon)
    daemon.kill()
    (daemon.root / "st" / "fleet.json").unlink()

    daemon.start("[pool.s]\nno-such-key = 1\n")

    assert pids(daemon) == before
    assert any("no-such-key" in notice for notice in daemon.call("status")["daemon"]["notices"])


def test_a_run_that_no_fleet_knows_is_stopped_and_said(daemon: DaemonUnderTest) -> None:
    daemon.start(sleepers("a") + sleepers("b", workers=1))
    before = pids(daemon)
    daemon.kill()
    shutil.rmtree(daemon.root / "st")

    daemon.start(sleepers("a"))
    eventually(lambda: list(daemon.workers()) == ["a/0", "a/1"], within_s=10)

    assert pids(daemon) == {name: before[name] for name in ("a/0", "a/1")}
    assert not runs(before["b/0"])
    assert "b/0 is no longer in the fleet" in events(daemon, "forgotten")


def test_records_that_cannot_be_written_are_told_and_supervision_goes_on(daemon: DaemonUnderTest) -> None:
    daemon.start(sleepers(workers=1))
    before = pids(daemon)
    daemon.kill()
    shutil.rmtree(daemon.root / "st" / "workers" / "s")
    daemon.write("st/workers/s", "a file in the place of a directory")

    daemon.start(sleepers(workers=1))
    adopted = pids(daemon)
    os.kill(adopted["s/0"], signal.SIGKILL)
    daemon.until("s/0", lambda worker: worker["run"] == 2 and worker["ready"])
    notices = daemon.call("status")["daemon"]["notices"]

    assert adopted == before
    assert any("cannot save the state of s/0" in notice for notice in notices)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_stops_nobody(daemon: DaemonUnderTest) -> None:
    daemon.start(sleepers(workers=1))
    before = pids(daemon)
    daemon.kill()
    full = (
        "cp -a st full && mount -t tmpfs -o size=256k full st && cp -a full/. st && "
        '(head -c 1M /dev/zero >st/filler; true) 2>&1 && exec "$@"'
    )

    daemon.start(sleepers(workers=1), under=("unshare", "--mount", "sh", "-ec", full, "sh"))
    adopted = pids(daemon)
    os.kill(adopted["s/0"], signal.SIGKILL)
    daemon.until("s/0", lambda worker: worker["run"] == 2 and worker["ready"])
    notices = daemon.call("status")["daemon"]["notices"]

    assert adopted == before
    assert any("No space left on device" in notice for notice in notices)


def test_an_exit_while_no_daemon_ran_is_learnt_with_its_code_its_log_and_its_place_in_the_budget(
    daemon: DaemonUnderTest,
) -> None:
    gate = daemon.root / "gate"
    os.mkfifo(gate)
    command = f'command = ["/bin/sh", "-c", "read _ <{gate}; echo CUDA error: out of luck; exit 7"]'
    text = sleepers(workers=1).replace('command = ["/bin/sh", "-c", "setsid sleep 1000 & exec sleep 1000"]', command)
    daemon.start(text.replace("delay-first-s = 0.05\ndelay-max-s = 0.05", "delay-first-s = 60"))
    daemon.all_ready()
    daemon.kill()
    gate.write_text("go\n")
    eventually((daemon.root / "rt" / "runs" / "s" / "0" / "1" / "end").exists, within_s=10)

    daemon.start()
    backoff = daemon.until("s/0", lambda worker: worker["phase"] == "backoff")
    daemon.kill()
    daemon.start()
    still = daemon.worker("s/0")

    assert (backoff["last_exit"]["code"], backoff["restarts"]) == (7, 1)
    assert "failure 1 of" in backoff["reason"]
    assert "out of luck" in daemon.call("logs", {"worker": "s/0", "run": 1})["text"]
    assert (still["phase"], still["run"], still["last_exit"]) == ("backoff", 1, backoff["last_exit"])
    assert abs(seconds(still["next_start_at"]) - seconds(backoff["next_start_at"])) < 0.5


def seconds(at: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(at).timestamp()


@pytest.mark.parametrize("daemon_too", [False, True], ids=["under the daemon", "and the daemon killed"])
def test_a_run_directory_that_is_deleted_is_noticed_and_never_makes_two_trees(
    daemon: DaemonUnderTest, daemon_too: bool
) -> None:
    daemon.start(sleepers(workers=1))
    before = pids(daemon)["s/0"]
    child = children(before)[0]

    shutil.rmtree(daemon.root / "rt" / "runs" / "s")
    if daemon_too:
        daemon.kill()
        daemon.start()
    else:
        eventually(lambda: any("has lost its directory" in one for one in notices(daemon)), within_s=10)
        assert daemon.worker("s/0")["pid"] == before
        os.kill(before, signal.SIGKILL)
    daemon.until("s/0", lambda worker: worker["run"] == 2 and worker["ready"])

    assert not runs(before)
    assert not runs(child)


def test_a_lone_process_without_its_directory_ends_as_the_run_it_was(daemon: DaemonUnderTest) -> None:
    lone = sleepers(workers=1).replace('"setsid sleep 1000 & exec sleep 1000"', '"exec sleep 1000"')
    daemon.start(lone)
    before = pids(daemon)["s/0"]
    shutil.rmtree(daemon.root / "rt" / "runs" / "s")
    daemon.kill()

    daemon.start()
    daemon.until("s/0", lambda worker: worker["run"] == 2 and worker["ready"], within_s=8)

    assert not runs(before)


def notices(daemon: DaemonUnderTest) -> list[str]:
    return list(daemon.call("status")["daemon"]["notices"])


@pytest.mark.parametrize("daemon_too", [False, True], ids=["alone", "with the daemon"])
def test_a_killed_keeper_leaves_nothing_of_its_tree_beside_the_next_run(
    daemon: DaemonUnderTest, daemon_too: bool
) -> None:
    daemon.start(sleepers(workers=1))
    worker = daemon.all_ready()["s/0"]
    child = children(worker["pid"])[0]

    if daemon_too:
        daemon.kill()
    os.kill(worker["keeper_pid"], signal.SIGKILL)
    if daemon_too:
        daemon.start()
    daemon.until("s/0", lambda worker: worker["run"] == 2 and worker["ready"])

    assert not runs(child)
    assert daemon.worker("s/0")["restarts"] == 1


def test_after_a_reboot_workers_start_anew_and_stopped_ones_stay_stopped(daemon: DaemonUnderTest) -> None:
    daemon.start(sleepers())
    daemon.call("stop", {"targets": ["s/1"]})
    daemon.until("s/1", lambda worker: worker["phase"] == "stopped")
    keeper = daemon.until("s/0", lambda worker: worker["ready"])["keeper_pid"]
    daemon.kill()
    os.kill(keeper, signal.SIGKILL)
    for pid in eventually_left(daemon):
        os.kill(pid, signal.SIGKILL)
    for name in ("s/0", "s/1"):
        rewrite(record(daemon, name), lambda record: record.update(boot_id="another boot"))
    for spec in (daemon.root / "rt" / "runs").glob("*/*/*/spec"):
        spec.write_text(spec.read_text().replace("boot_id ", "boot_id not-"))

    daemon.start()
    again = daemon.until("s/0", lambda worker: worker["ready"])

    assert (again["run"], again["restarts"], again["last_exit"]) == (2, 0, None)
    assert (daemon.worker("s/1")["phase"], daemon.worker("s/1")["goal"]) == ("stopped", "down")


def eventually_left(daemon: DaemonUnderTest) -> tuple[int, ...]:
    """Processes that a killed keeper left."""
    return daemon.left()


def test_sixty_four_workers_are_taken_over_within_a_second(daemon: DaemonUnderTest) -> None:
    text = sleepers(workers=64).replace("gpus-per-worker = 1", "gpus-per-worker = 0")
    daemon.start(text.replace('"setsid sleep 1000 & exec sleep 1000"', '"exec sleep 1000"'))
    before = pids(daemon)
    daemon.kill()

    daemon.start()
    (told,) = events(daemon, "adopted")

    assert pids(daemon) == before
    assert told.startswith("took over 64 of 64 runs")
    assert float(told.split(" in ")[1].split(" ms")[0]) < 1000


def test_a_daemon_that_was_killed_while_it_stopped_its_workers_has_stopped_none_for_good(
    daemon: DaemonUnderTest,
) -> None:
    stubborn = 'command = ["/bin/sh", "-c", "trap : TERM; while :; do sleep 0.1; done"]'
    text = sleepers(workers=1).replace('command = ["/bin/sh", "-c", "setsid sleep 1000 & exec sleep 1000"]', stubborn)
    daemon.start(text.replace("workers = 1", "workers = 1\nstop-timeout-s = 1"))
    daemon.all_ready()
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    daemon.until("s/0", lambda worker: worker["phase"] == "stopping")
    daemon.kill()

    daemon.start()
    daemon.until("s/0", lambda worker: worker["run"] == 2 and worker["ready"])


def test_the_state_of_the_daemon_is_not_for_others_to_read(daemon: DaemonUnderTest) -> None:
    daemon.start(sleepers(workers=1, keys='env = { TOKEN = "secret" }\n'))
    daemon.all_ready()

    found = subprocess.run(
        ["grep", "-rl", "secret", daemon.root / "st", daemon.root / "rt"], capture_output=True, text=True, check=False
    ).stdout.split()

    assert found
    for path in map(Path, found):
        assert any(not one.stat().st_mode & 0o007 for one in (path, path.parent)), path
