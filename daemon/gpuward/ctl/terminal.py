"""Tables and lines in colour, with rich. Imported only where colours are on: it costs more than all the rest."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.text import Text

from gpuward.ctl.table import GAP, Table, fitted, padded
from gpuward.ctl.text import shortened

STYLES = {
    "PHASE": {
        "ready": "green",
        "starting": "yellow",
        "draining": "yellow",
        "stopping": "yellow",
        "releasing": "yellow",
        "backoff": "yellow",
        "blocked": "yellow",
        "failed": "bold red",
        "stopped": "dim",
    },
    "HEALTH": {
        "ok": "green",
        "stale": "yellow",
        "unknown": "yellow",
        "cordoned": "yellow",
        "barred": "yellow",
        "quarantined": "bold red",
        "lost": "bold red",
    },
    "ACTION": {"start": "green", "stop": "red", "restart": "yellow", "move": "yellow", "keep": "dim"},
    "CAUSE": {"commanded": "dim"},
}
"""Style by column and word; never colour alone: the word is always there."""
_BY_COLUMN = {"NAME": "bold", "WORKER": "bold", "REASON": "dim", "CAUSE": "red", "MEMORY": "cyan"}


class Terminal:
    """A coloured terminal of ``width`` characters."""

    def __init__(self, out: TextIO, width: int) -> None:
        self._console = Console(file=out, force_terminal=True, width=width, highlight=False, soft_wrap=True)

    def line(self, text: str, style: str) -> None:
        """Write one line as it is: never wrapped, no markup read."""
        self._console.print(Text(text), style=style or None, no_wrap=True, overflow="ignore", crop=False)

    def table(self, table: Table, *, width: int | None, headers: bool) -> None:
        """Write aligned columns; ``width`` None: as long as they are."""
        narrow = fitted(table, width)
        head, *rows = padded(narrow)
        if headers:
            line = GAP.join(head).rstrip()
            self.line(shortened(line, len(line) if width is None else width), "bold dim")
        for row in rows:
            self._row(narrow.headers, row, width)

    def _row(self, headers: tuple[str, ...], row: tuple[str, ...], width: int | None) -> None:
        text = Text()
        for at, (header, cell) in enumerate(zip(headers, row, strict=True)):
            style = STYLES.get(header, {}).get(cell.strip(), _BY_COLUMN.get(header, ""))
            text.append(GAP if at else "").append(cell, style=style)
        text.rstrip()
        if width is not None:
            text.truncate(width, overflow="ellipsis")
        self._console.print(text, no_wrap=True, overflow="ignore", crop=False)
