"""Every published Dynamo example: our plan on eight GPUs beside what Dynamo's own allocator did.

The expected lists come from running that allocator; where it left a service unpinned, invented GPUs or gave fewer
than the engine needs, we must differ, and say why.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from gpuward.config.errors import ConfigError
from gpuward.config.fleet import Remark
from gpuward.interop.fleet_files import decode_fleet
from gpuward.policy.gpus.inventory import Gpu, Snapshot
from gpuward.policy.placement.place import place

Record = dict[str, Any]

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "dynamo-configs"
EXPECTED = FIXTURES / "EXPECTED_8gpu.json"
HOST = Snapshot(
    provider="simulated",
    state="ok",
    taken_at_s=0.0,
    gpus=tuple(
        Gpu(index=index, uuid=f"GPU-{index}", name="H100", pci_bus_id="", total_bytes=80 * 1024**3)
        for index in range(8)
    ),
)

pytestmark = [
    pytest.mark.fixtures,
    pytest.mark.skipif(not EXPECTED.exists(), reason="needs ../shared/fixtures/dynamo-configs beside the checkout"),
]


@dataclass(frozen=True, slots=True)
class Answer:
    sets: dict[str, list[str]]
    problems: tuple[Remark, ...]
    warnings: tuple[Remark, ...]

    def codes(self, service: str) -> set[str]:
        return {remark.code for remark in (*self.problems, *self.warnings) if remark.pool == service}


def answer(name: str) -> Answer:
    try:
        fleet = decode_fleet(
            (FIXTURES / name).read_text(encoding="utf-8"), file=name, directory="/srv", path_exists=lambda _: False
        )
    except ConfigError as error:
        return Answer({}, error.problems, ())
    plan = place(fleet.pools, HOST)
    sets: dict[str, list[str]] = {}
    for worker in plan.workers:
        sets.setdefault(worker.pool, []).append(",".join(map(str, worker.gpus)))
    return Answer(sets, plan.problems, (*fleet.warnings, *plan.warnings))


def records() -> list[Record]:
    return json.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.exists() else []


def right_in_dynamo(services: list[Record]) -> bool:
    """Whether 0.1 or later gave every service GPUs that exist, and no fewer than it uses.

    A mismatch of tensor x data parallel size is right for SGLang's attention data parallelism (the ranks coincide).
    """
    wrong = [
        row
        for row in services
        if "PHANTOM" in str(row.get("note")) or (row.get("mismatch") and row["tp"] != row["gpu"])
    ]
    return bool(services) and not wrong


RECORDS = records()
RIGHT = [record for record in RECORDS if right_in_dynamo(record["services"])]
WRONG = [record for record in RECORDS if record not in RIGHT and record["services"]]
WITHOUT_WORKERS = [record for record in RECORDS if not record["services"]]

REFUSALS = {"too-few-gpus", "parallel-size-mismatch", "several-hosts", "bad-value"}
"""bad-value: the part of a service on several hosts that is ``--headless`` serves no HTTP."""

OTHER_ORDER = {"multimodal", "multimodal_v1", "vllm_v1"}
"""Families whose graph visits services in another order than the file lists them: same sets, dealt in file order."""


def name_of(record: Record) -> str:
    return record["file"].removesuffix(".yaml")


@pytest.mark.parametrize("record", RIGHT, ids=name_of)
def test_where_dynamo_was_right_the_plan_is_the_same(record: Record) -> None:
    services = record["services"]

    got = answer(record["file"])

    assert got.problems == ()
    wanted = {row["service"]: row["cvd_v01"] for row in services}
    if record["path"].split("/")[1] in OTHER_ORDER:
        assert {name: len(sets) for name, sets in got.sets.items()} == {
            name: len(sets) for name, sets in wanted.items()
        }
        assert sorted(chain(*got.sets.values())) == sorted(chain(*wanted.values()))
    else:
        assert got.sets == wanted


@pytest.mark.parametrize("record", RIGHT, ids=name_of)
def test_a_service_that_dynamo_left_unpinned_is_pinned_and_told(record: Record) -> None:
    services = record["services"]

    got = answer(record["file"])

    for row in services:
        assert ("dynamo-unpinned" in got.codes(row["service"])) == (row["cvd"] == [])


@pytest.mark.parametrize("record", WRONG, ids=name_of)
def test_where_dynamo_invented_gpus_or_gave_too_few_the_plan_is_refused(record: Record) -> None:
    services = record["services"]

    got = answer(record["file"])

    assert got.sets == {}
    assert {problem.code for problem in got.problems} <= REFUSALS
    assert {problem.pool for problem in got.problems} <= {row["service"] for row in services}
    assert got.problems


@pytest.mark.parametrize("record", WITHOUT_WORKERS, ids=name_of)
def test_a_file_without_gpu_services_is_refused_as_such(record: Record) -> None:
    got = answer(record["file"])

    assert ["there is nothing to place" in problem.message for problem in got.problems] == [True]


def test_the_set_is_whole() -> None:
    assert (len(RIGHT), len(WRONG), len(WITHOUT_WORKERS)) == (66, 11, 3)


def test_the_reported_file_is_refused_for_the_two_reasons_it_has() -> None:
    got = answer("issue390.yaml")

    assert [problem.code for problem in got.problems] == ["parallel-size-mismatch", "too-few-gpus"]
    assert "9, + 1 for the other pools = 10, but this host has 8" in got.problems[1].message
