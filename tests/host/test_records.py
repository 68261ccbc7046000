"""State on disk: what is written is found again, what is broken is set aside, what is older is brought up."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from gpuward.config.fleet import Fleet, Pool
from gpuward.host.records import VERSION, Records, StoredFleet, StoredGpus
from gpuward.host.versions import migrated
from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.worker.life import Goal, LadderStep, Phase, Worker
from gpuward.policy.worker.phases import of_this_version, sentence

WORKER = Worker(
    name="m/0",
    pool="m",
    index=0,
    goal=Goal.UP,
    phase=Phase.BACKOFF,
    run=4,
    failures=(1.0, 2.5),
    not_before_s=99.5,
    definition="abc",
    last_exit=LastExit(run=4, cause="crash", code=None, signal=9, at=12.5, evidence=("line",)),
)
STOPPED = Worker(name="m/1", pool="m", index=1, goal=Goal.DOWN)
STOPPED_ZERO = replace(WORKER, goal=Goal.DOWN)
FLEET = StoredFleet(
    version=VERSION, revision=3, source="f", digest="d", applied_at=1.0, fleet=Fleet(pools=(Pool(name="m"),))
)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    records = Records(tmp_path)
    records.prepare()
    return records


def path_of(records: Records) -> Path:
    return records.root / "workers" / "m" / "0.json"


def test_a_worker_and_the_fleet_are_found_as_they_were_saved(records: Records) -> None:
    records.save_worker(WORKER, "boot", durable=True)
    records.save_fleet(FLEET)

    found = Records(records.root)

    assert found.load_workers()["m/0"].worker == WORKER
    assert found.load_workers()["m/0"].boot_id == "boot"
    assert found.load_fleet() == FLEET


@pytest.mark.parametrize(
    ("text", "reason"),
    [(b"", "truncated"), (b'{"version": 1', "truncated"), (b"\xff\0", "malformed"), (b'{"version": 99}', "version 99")],
)
def test_what_cannot_be_read_is_set_aside_with_the_reason_and_kept(records: Records, text: bytes, reason: str) -> None:
    records.save_worker(WORKER, "boot", durable=False)
    path_of(records).write_bytes(text)

    loaded = records.load_workers()

    assert loaded == {}
    assert reason in records.set_aside[0].reason
    assert records.set_aside[0].path.read_bytes() == text
    assert not path_of(records).exists()


def test_a_second_broken_file_does_not_replace_the_first(records: Records) -> None:
    for text in (b"one", b"two"):
        path_of(records).parent.mkdir(exist_ok=True)
        path_of(records).write_bytes(text)
        records.load_workers()

    assert sorted(path.name for path in path_of(records).parent.iterdir()) == ["0.json.broken-1", "0.json.broken-2"]


def test_what_the_operator_wants_is_known_without_the_record(records: Records) -> None:
    records.save_worker(STOPPED, "boot", durable=True)
    records.save_goal(STOPPED)
    records.save_goal(replace(STOPPED, name="m/2", goal=Goal.UP))
    (records.root / "workers" / "m" / "1.json").write_bytes(b"garbage")

    assert records.goals() == {"m/1": Goal.DOWN, "m/2": Goal.UP}


def test_a_goal_is_written_over_in_its_place(records: Records) -> None:
    path = records.root / "workers" / "m" / "1.goal"
    sizes = []
    for goal in (Goal.UP, Goal.DOWN, Goal.UP):
        records.save_goal(replace(STOPPED, goal=goal))
        sizes.append((path.stat().st_ino, path.stat().st_size))

    assert len(set(sizes)) == 1
    assert records.goals() == {"m/1": Goal.UP}


def test_a_mark_of_an_earlier_version_counts_until_the_goal_is_saved(records: Records) -> None:
    mark = records.root / "workers" / "m" / "1.down"
    mark.parent.mkdir()
    mark.touch()

    before = records.goals()
    records.save_goal(replace(STOPPED, goal=Goal.UP))

    assert before == {"m/1": Goal.DOWN}
    assert records.goals() == {"m/1": Goal.UP}


def test_a_forgotten_worker_leaves_nothing(records: Records) -> None:
    records.save_worker(STOPPED, "boot", durable=True)
    records.save_goal(STOPPED)

    records.forget("m/1", 4)

    assert list((records.root / "workers").iterdir()) == []


def test_a_document_is_brought_up_one_version_after_the_other() -> None:
    migrations = {VERSION - 2: lambda old: {"b": old["a"]}, VERSION - 1: lambda old: {"c": old["b"] + 1}}

    assert migrated({"version": VERSION - 2, "a": 1}, migrations) == {"c": 2, "version": VERSION}


@pytest.mark.parametrize("version", [VERSION + 1, VERSION - 1])
def test_a_document_that_no_way_leads_up_from_says_its_version(version: int) -> None:
    with pytest.raises(msgspec.ValidationError, match=f"has version {version}, this gpuward reads {VERSION}"):
        migrated({"version": version}, {})


def test_records_of_a_version_with_fewer_keys_are_read(records: Records) -> None:
    records.save_worker(WORKER, "boot", durable=False)
    document = json.loads(path_of(records).read_text())
    del document["worker"]["definition"]
    path_of(records).write_text(json.dumps(document))

    assert records.load_workers()["m/0"].worker.definition == ""


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"", b"a b\nc"])
def test_a_broken_instance_file_is_made_anew(records: Records, damage: bytes) -> None:
    (records.root / "instance").write_bytes(damage)

    made = records.instance()

    assert made.isalnum()
    assert records.instance() == made


def test_an_epoch_that_cannot_be_written_is_reported_and_the_life_goes_on(tmp_path: Path) -> None:
    (tmp_path / ".epoch.new").mkdir()
    records = Records(tmp_path)

    assert records.next_epoch() == 1
    assert "cannot be written" in records.set_aside[0].reason


def test_a_step_is_kept_with_the_run_that_it_followed_and_records_without_one_are_still_read(records: Records) -> None:
    path = records.root / "history" / "m" / "0" / "00000004.json"
    path.parent.mkdir(parents=True)
    exit_ = {"run": 4, "cause": "gpu-oom-runtime", "code": 1, "signal": None, "at": 1.0}
    old = {"version": VERSION, "run": 4, "exit": exit_, "reason": "r", "hint": "", "ran_s": 1.0}
    more = {"descendants_killed": 0, "max_rss_bytes": 0, "gpu_uuids": ["GPU-0"], "peak_bytes": {"GPU-0": 5}}
    path.write_text(json.dumps({**old, **more}))
    step = LadderStep(key="max-num-seqs", before=256, value=128)

    records.add_step("m/0", 3, step)
    before = records.history("m/0")
    records.add_step("m/0", 4, step)

    assert [(run.step, run.claim_bytes) for run in before] == [(None, {})]
    assert [(run.step, run.peak_bytes) for run in records.history("m/0")] == [(step, {"GPU-0": 5})]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"name": "x"}, "called 'x'"),
        ({"pool": "unknown"}, "of pool 'unknown'"),
        ({"index": 7}, "worker 7"),
        ({"since_s": 1e300}, "worker.since_s = 1e+300"),
        ({"failures": (1.0, -1e12)}, "worker.failures = -1e+12"),
        ({"run": 10**30}, "worker.run is a number of 100 bits"),
    ],
)
def test_a_worker_that_makes_no_sense_is_set_aside(records: Records, changed: dict[str, object], reason: str) -> None:
    records.save_worker(WORKER, "boot", durable=False)
    document = json.loads(path_of(records).read_bytes())
    document["worker"].update(changed)
    path_of(records).write_text(json.dumps(document))

    assert records.load_workers() == {}
    assert reason in records.set_aside[0].reason


@pytest.mark.parametrize("since", [1e300, -1e12])
def test_a_gpu_that_is_out_of_service_since_before_or_after_all_time_is_not(records: Records, since: float) -> None:
    quarantine = {"reason": "XID 79", "since": since, "boot_id": "b"}
    document = {"version": VERSION, "health": {"quarantines": {"GPU-0": quarantine}}}
    (records.root / "gpus.json").write_text(json.dumps(document))

    assert records.load_gpus().health.quarantines == {}
    assert "health.quarantines.GPU-0.since" in records.set_aside[0].reason


@pytest.mark.parametrize(
    ("pools", "reason"),
    [
        ([{"name": "../../etc"}], "cannot be called '../../etc'"),
        ([{"name": "m", "workers": 10**9}], "1000000000 workers"),
        ([{"name": "m"}, {"name": "m"}], "2 pools are called m"),
    ],
)
def test_a_fleet_that_no_file_can_have_said_is_set_aside(records: Records, pools: list[object], reason: str) -> None:
    records.save_fleet(FLEET)
    path = records.root / "fleet.json"
    document = json.loads(path.read_bytes())
    document["fleet"]["pools"] = pools
    path.write_text(json.dumps(document))

    assert records.load_fleet() is None
    assert reason in records.set_aside[0].reason


def test_marks_of_workers_that_cannot_be_are_no_goals(records: Records) -> None:
    (records.root / "workers" / "m").mkdir()
    for name in ("x.goal", "07.goal", "٣.down", "99999999.down", "1.goal", "2.down"):
        (records.root / "workers" / "m" / name).write_text("down")

    assert records.goals() == {"m/1": Goal.DOWN, "m/2": Goal.DOWN}


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_directory(path: Path) -> None:
    path.mkdir()


def zeros(path: Path) -> None:
    path.touch()
    os.truncate(path, 3 * 10**9)


@pytest.mark.parametrize("put", [a_pipe, a_device, a_directory, zeros])
@pytest.mark.parametrize("name", ["epoch", "instance", "fleet.json", "gpus.json", "operations.json", "m/0.json"])
def test_what_is_no_file_in_the_place_of_one_is_set_aside_at_once_and_replaced(
    records: Records, put: Callable[[Path], None], name: str
) -> None:
    path = path_of(records) if name == "m/0.json" else records.root / name
    path.parent.mkdir(exist_ok=True)
    put(path)
    put(path.with_name(f".{path.name}.new")) if put is not a_directory else None
    before_s = time.monotonic()

    loaded = (records.load_fleet(), records.load_gpus().health, records.load_operations().count, records.load_workers())
    records.save_worker(WORKER, "boot", durable=True)
    records.save_fleet(FLEET)
    first = (records.next_epoch(), records.instance())

    assert loaded == (None, StoredGpus(version=VERSION).health, 0, {})
    assert (records.next_epoch(), records.instance()) == ((first[0] + 1, first[1]))
    assert Records(records.root).load_fleet() == FLEET
    assert Records(records.root).load_workers()["m/0"].worker == WORKER
    assert time.monotonic() - before_s < 5


@pytest.mark.parametrize("put", [a_pipe, a_device, a_directory, zeros])
def test_a_goal_that_is_no_file_says_nothing_and_is_written_anew(records: Records, put: Callable[[Path], None]) -> None:
    path = path_of(records).with_suffix(".goal")
    path.parent.mkdir()
    put(path)

    assert records.goals() == {}
    records.save_goal(STOPPED_ZERO)
    assert records.goals() == {"m/0": Goal.DOWN}


@pytest.mark.parametrize(
    ("then", "kind", "follows"),
    [
        ("stop", "stop", "rest"),
        ("start", "restart", "start"),
        ("fail", "start-timeout", "judge"),
        ("halt", "halt", "rest"),
    ],
)
def test_a_record_that_knows_why_a_run_ends_by_one_word_only_is_read(
    records: Records, then: str, kind: str, follows: str
) -> None:
    old = {"name": "m/0", "pool": "m", "index": 0, "goal": "up", "phase": "stopping", "run": 4, "then": then}
    old |= {"reason": "env changed; SIGTERM sent, SIGKILL follows after 30 s", "deadline_s": 40.0}
    path_of(records).parent.mkdir(exist_ok=True)
    path_of(records).write_text(json.dumps({"version": 1, "boot_id": "b", "worker": old}))

    worker = of_this_version(records.load_workers()["m/0"].worker)

    assert worker.ending is not None
    assert (worker.ending.kind, worker.ending.then, worker.then) == (kind, follows, None)
    assert worker.reason == sentence(worker)
