"""Aligned columns of text, made to fit a width. Pure."""

from __future__ import annotations

from gpuward.ctl.text import one_line, shortened, shortened_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

GAP = "  "
LAST_MIN = 16
"""Characters that the last column shall keep before other columns are dropped for it."""
FIRST_MIN = 8


class Table:
    """Rows under headers; the first column is a name, the last a sentence; both may be shortened.

    ``optional``: headers of columns that go first when the width is too small, in that order. ``right``: right-aligned.
    """

    def __init__(
        self,
        headers: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        optional: Sequence[str] = (),
        right: Sequence[str] = (),
    ) -> None:
        self.headers = tuple(headers)
        self.rows = [tuple(one_line(cell) for cell in row) for row in rows]
        self.optional = tuple(optional)
        self.right = tuple(right)

    def without(self, header: str) -> Table:
        """Return the table without one column."""
        at = self.headers.index(header)
        return Table(
            self.headers[:at] + self.headers[at + 1 :],
            [row[:at] + row[at + 1 :] for row in self.rows],
            optional=[other for other in self.optional if other != header],
            right=self.right,
        )

    def widths(self) -> list[int]:
        """Return the natural width of each column."""
        return [max(map(len, column)) for column in zip(self.headers, *self.rows, strict=True)]


def fitted(table: Table, width: int | None) -> Table:
    """Return the table with columns dropped and cells shortened so that no line is longer than ``width``."""
    if width is None:
        return table
    while table.optional and _least_width(table) > width:
        table = table.without(table.optional[0])
    widths = table.widths()
    others = sum(widths[1:-1]) + len(GAP) * (len(widths) - 1)
    first = max(min(FIRST_MIN, widths[0]), min(widths[0], width - others - min(LAST_MIN, widths[-1])))
    last = max(0, width - others - first)
    return Table(
        (table.headers[0], *table.headers[1:-1], shortened(table.headers[-1], last)),
        [(shortened_name(row[0], first), *row[1:-1], shortened(row[-1], last)) for row in table.rows],
        right=table.right,
    )


def padded(table: Table) -> list[tuple[str, ...]]:
    """Return header and rows with every cell but the last at its column's width."""
    widths = table.widths()
    return [
        tuple(
            cell.rjust(width) if header in table.right else cell if at == len(widths) - 1 else cell.ljust(width)
            for at, (header, cell, width) in enumerate(zip(table.headers, row, widths, strict=True))
        )
        for row in (table.headers, *table.rows)
    ]


def lines(table: Table, *, width: int | None, headers: bool) -> list[str]:
    """Return the table as plain lines."""
    rows = padded(fitted(table, width))
    return [
        shortened(line, len(line) if width is None else width)
        for line in (GAP.join(row).rstrip() for row in (rows if headers else rows[1:]))
    ]


def _least_width(table: Table) -> int:
    widths = table.widths()
    return sum(widths[:-1]) + len(GAP) * (len(widths) - 1) + min(LAST_MIN, widths[-1])
