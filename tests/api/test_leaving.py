"""Who may end the daemon and leave its workers, and when it is refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tests.policy.fleets import a_snapshot

from gpuward.api.leaving import Leaving
from gpuward.control.server import Refusal
from gpuward.policy.fleet.step import FleetState
from gpuward.policy.reasons import By
from gpuward.policy.worker.life import Phase, Worker
from gpuward.supervisor.departure import Departure

BOB = By(uid=1000, user="bob")


def leaving(*, halting: bool = False) -> tuple[Leaving, Departure]:
    workers = {"m/0": Worker(name="m/0", pool="m", index=0, phase=Phase.READY)}
    workers["m/1"] = replace(workers["m/0"], name="m/1", phase=Phase.STOPPED)
    state = FleetState(snapshot=a_snapshot(), workers=workers, halting=halting)
    departure = Departure()
    return Leaving(SimpleNamespace(state=state), departure), departure  # type: ignore[arg-type]


def test_detach_tells_who_goes_on_and_ends_the_life() -> None:
    under_test, departure = leaving()

    answer = asyncio.run(under_test.answer("detach", BOB))

    assert answer["workers"] == ["m/0"]
    assert (departure.reason, departure.by) == ("gpuctl daemon detach (bob)", BOB)


@pytest.mark.parametrize("op", ["detach", "reexec"])
def test_a_daemon_that_stops_its_workers_is_not_left_half_way(op: str) -> None:
    under_test, departure = leaving(halting=True)

    with pytest.raises(Refusal, match="stopping its workers") as refused:
        asyncio.run(under_test.answer(op, BOB))

    assert (refused.value.code, departure.reason) == ("shutting-down", "")
