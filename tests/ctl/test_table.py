from __future__ import annotations

import pytest

from gpuward.ctl.table import Table, lines

ROW = ("decode/0", "ready", "12345", "a sentence that says why, with 2 numbers in 1 line")


def a_table(*rows: tuple[str, ...]) -> Table:
    return Table(("NAME", "PHASE", "PID", "REASON"), rows or [ROW], optional=("PID", "PHASE"), right=("PID",))


def test_without_a_width_nothing_is_cut_and_columns_are_aligned() -> None:
    drawn = lines(a_table(ROW, ("p/1", "stopped", "7", "")), width=None, headers=True)

    assert drawn == [
        "NAME      PHASE      PID  REASON",
        "decode/0  ready    12345  a sentence that says why, with 2 numbers in 1 line",
        "p/1       stopped      7",
    ]


def test_the_reason_is_shortened_before_a_column_goes() -> None:
    drawn = lines(a_table(), width=50, headers=False)

    assert drawn == ["decode/0  ready  12345  a sentence that says why,…"]


def test_optional_columns_go_in_their_order_so_that_the_reason_can_be_read() -> None:
    drawn = lines(a_table(), width=34, headers=True)

    assert drawn == ["NAME      PHASE  REASON", "decode/0  ready  a sentence that…"]


def test_a_narrow_first_column_leaves_its_room_to_the_last() -> None:
    drawn = lines(Table(("GPU", "HEALTH", "FOREIGN"), [("0", "ok", "-")]), width=20, headers=True)

    assert drawn == ["GPU  HEALTH  FOREIGN", "0    ok      -"]


@pytest.mark.parametrize("width", [1, 5, 10, 20, 40, 79, 80])
def test_no_line_is_ever_longer_than_the_width(width: int) -> None:
    table = a_table(ROW, ("a-pool-with-a-very-long-name-indeed/12", "ready", "1", "x" * 200))

    drawn = lines(table, width=width, headers=True)

    assert max(map(len, drawn)) <= width


def test_a_name_that_is_shortened_keeps_its_end_which_tells_the_workers_of_a_pool_apart() -> None:
    rows = [(f"a-pool-with-a-very-long-name-indeed/{index}", "ready", "1", "x" * 99) for index in (1, 12)]

    drawn = lines(a_table(*rows), width=40, headers=False)

    assert [line.split()[0] for line in drawn] == ["a-pool-with-a-ve…eed/1", "a-pool-with-a-ve…ed/12"]


def test_a_line_break_in_a_cell_does_not_break_the_table() -> None:
    drawn = lines(a_table(("a\nb", "ready", "1", "x\x1b[2Jy")), width=None, headers=False)

    assert drawn == ["a b   ready    1  x [2Jy"]
