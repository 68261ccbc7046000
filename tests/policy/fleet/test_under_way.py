"""What `gpuctl why` says of commands and rolls that involve a worker."""

from __future__ import annotations

import pytest

from gpuward.config.fleet import Pool
from gpuward.policy.fleet.operations import Operation, Target
from gpuward.policy.fleet.roll import Roll
from gpuward.policy.fleet.under_way import under_way
from gpuward.policy.worker.life import Goal, Phase, Worker

WORKER = Worker(name="w/1", pool="w", index=1, goal=Goal.UP, phase=Phase.READY, run=4)
EARLIER = Pool(name="w")
BACK = "if it fails, the pool goes back to its earlier definition."


def a_target(name: str, state: str = "pending", *, down: bool = False) -> Target:
    return Target(name=name, down=down, ready_in_run=5, state=state)  # type: ignore[arg-type]


def an_apply(*targets: Target) -> Operation:
    return Operation(id="apply-7", verb="apply", targets=targets)


def test_a_command_under_way_tells_what_it_wants_of_the_worker_and_who_else_it_waits_for() -> None:
    apply = an_apply(a_target("w/0", "done"), a_target("w/1"), a_target("w/2"))

    told = list(under_way(WORKER, [apply], None))

    start = "The command apply (apply-7) is under way, 1 of 3 workers done"
    assert told == [f"{start}: this one is to be ready in run 5; it waits for w/2 too."]


def test_a_stop_under_way_says_so() -> None:
    told = list(under_way(WORKER, [an_apply(a_target("w/1", down=True))], None))

    assert told == ["The command apply (apply-7) is under way, 0 of 1 workers done: this one is to be stopped."]


def test_a_worker_that_a_command_is_done_with_hears_whom_it_waits_for() -> None:
    others = [a_target(f"w/{number}") for number in range(2, 9)]

    told = list(under_way(WORKER, [an_apply(a_target("w/1", "done"), *others)], None))

    start = "The command apply (apply-7) is under way, 1 of 8 workers done, this one among them"
    assert told == [f"{start}; it waits for w/2, w/3, w/4, w/5 and 3 more."]


def test_commands_that_are_over_or_of_others_are_not_spoken_of() -> None:
    operations = [an_apply(a_target("w/1", "done")), an_apply(a_target("w/0"))]

    assert list(under_way(WORKER, operations, None)) == []


@pytest.mark.parametrize(
    ("roll", "told"),
    [
        (
            Roll(left=("w/2",), turns={"w/1": 5}, rolled=("w/0",), earlier=EARLIER),
            f"being rolled, 1 done: it is this one's turn; then w/2; {BACK}",
        ),
        (
            Roll(left=(), turns={"w/1": 5}, rolled=("w/0", "w/2")),
            "being rolled, 2 done: it is this one's turn; if it fails, the roll stops here.",
        ),
        (
            Roll(left=("w/1", "w/2"), turns={"w/0": 5}),
            "being rolled, 0 done: this one is restarted once w/0 is ready again.",
        ),
        (
            Roll(left=("w/2", "w/1"), turns={"w/0": 5}),
            "being rolled, 0 done: this one is restarted once w/0, w/2 are ready again.",
        ),
        (
            Roll(left=("w/3",), turns={"w/2": 5}, rolled=("w/0", "w/1")),
            "being rolled, 2 done: it is w/2's turn; then w/3; this one is left as it is.",
        ),
        (
            Roll(left=("w/1",), turns={"w/0": 5}, failed="w/0", failure="at w/0: crash", earlier=EARLIER),
            "taken back to its earlier definition, since w/0 failed: this one is restarted once w/0 is ready again.",
        ),
    ],
    ids=["its turn", "no way back", "next", "later", "done", "back"],
)
def test_a_roll_tells_where_it_is_and_when_it_is_this_workers_turn(roll: Roll, told: str) -> None:
    of_the_roll = Operation(id="roll-1", verb="roll", targets=(a_target("w/1"),))

    assert list(under_way(WORKER, [of_the_roll], roll)) == [f"Its pool is {told}"]
