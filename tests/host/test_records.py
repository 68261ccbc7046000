"""State on disk: what is written is found again, what is broken is set aside, what is older is brought up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from gpuward.config.fleet import Fleet, Pool
from gpuward.host.records import VERSION, Records, StoredFleet, migrated
from gpuward.policy.life import Goal, LadderStep, LastExit, Phase, Worker

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

    records.forget("m/1")

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
