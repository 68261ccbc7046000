"""Where gpuctl writes: stdout for what was asked, stderr for trouble; plain columns, a coloured terminal, or JSON."""

from __future__ import annotations

import json
import os
import sys

from gpuward.control.protocol import SCHEMA_VERSION
from gpuward.ctl.table import Table, lines
from gpuward.ctl.text import wrapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TextIO

    from gpuward.ctl.terminal import Terminal

FORMATS = ("table", "wide", "json", "jsonl", "name")
COLORS = ("auto", "always", "never")
NARROW_DEFAULT = 80


class Screen:
    """The two streams and how to write on them."""

    def __init__(
        self, *, output: str = "table", color: str = "auto", headers: bool = True, out: TextIO, err: TextIO
    ) -> None:
        """``output`` of FORMATS, ``color`` of COLORS."""
        self.output = output
        self.headers = headers
        self.out = out
        self.err = err
        self.is_terminal = out.isatty()
        self.width = terminal_width(out)
        self._err_width = terminal_width(err) if err.isatty() else None
        colored = color == "always" or (color == "auto" and self.is_terminal and not os.environ.get("NO_COLOR"))
        self._terminal: Terminal | None = None
        if self.draws and colored:
            from gpuward.ctl.terminal import Terminal  # rich costs 50 ms: only where its colours are seen

            self._terminal = Terminal(out, self.width or NARROW_DEFAULT)

    @property
    def draws(self) -> bool:
        """Whether the answer is for eyes: table or wide."""
        return self.output in {"table", "wide"}

    @property
    def wide(self) -> bool:
        """Whether all columns are asked for."""
        return self.output == "wide"

    def line(self, text: str = "", style: str = "") -> None:
        """Write one line; ``style`` only where colours are on."""
        if self._terminal is not None:
            self._terminal.line(text, style)
        else:
            self.out.write(text + "\n")

    def sentence(self, text: str, indent: str = "", style: str = "") -> None:
        """Write a sentence, broken between words where the terminal ends."""
        for line in wrapped(text, self.width, indent):
            self.line(line, style)

    def table(self, table: Table) -> None:
        """Write aligned columns; ``wide`` is never cut."""
        width = None if self.wide else self.width
        if self._terminal is not None:
            self._terminal.table(table, width=width, headers=self.headers)
            return
        for line in lines(table, width=width, headers=self.headers):
            self.out.write(line + "\n")

    def document(self, document: Mapping[str, object], *, compact: bool = False) -> None:
        """Write one JSON document, with ``schema_version`` where it has none."""
        whole = {"schema_version": SCHEMA_VERSION, **document}
        text = json.dumps(whole, separators=(",", ":")) if compact else json.dumps(whole, indent=2)
        self.out.write(text + "\n")

    def listing(
        self,
        document: Mapping[str, object],
        items: Sequence[Mapping[str, object]],
        names: Sequence[str],
        draw: Callable[[], None],
    ) -> None:
        """Write a listing in the format that was asked for: drawn, whole, one item a line, or names."""
        match self.output:
            case "json":
                self.document(document)
            case "jsonl":
                for item in items:
                    self.document(item, compact=True)
            case "name":
                self.out.writelines(f"{name}\n" for name in names)
            case _:
                draw()

    def complain(self, text: str) -> None:
        """Write trouble to stderr, after what stdout got so far: one line, broken between words on a terminal."""
        self.out.flush()
        for line in wrapped(f"gpuctl: {text}", self._err_width, ""):
            self.err.write(line + "\n")
        self.err.flush()

    def quote(self, lines: Sequence[str]) -> None:
        """Write what a worker has said below what was complained of."""
        for quoted in lines:
            for line in wrapped(quoted, self._err_width, "  | "):
                self.err.write(line + "\n")
        self.err.flush()

    def overwrite(self, text: str) -> None:
        """Replace the terminal's current line; it is gone with the next call of ``overwrite("")``."""
        self.out.write(f"\r\x1b[K{text}")
        self.out.flush()

    def clear(self) -> None:
        """Empty the terminal."""
        self.out.write("\x1b[H\x1b[J")


def standard_screen(*, output: str = "table", color: str = "auto", headers: bool = True) -> Screen:
    """Return the screen on this process' own streams; what they cannot encode is shown as ``?``."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    return Screen(output=output, color=color, headers=headers, out=sys.stdout, err=sys.stderr)


def terminal_width(out: TextIO) -> int | None:
    """Return $COLUMNS, else the terminal's width; None for a pipe: what reads it wants everything."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    if not out.isatty():
        return None
    try:
        return os.get_terminal_size(out.fileno()).columns or NARROW_DEFAULT
    except (OSError, ValueError):
        return NARROW_DEFAULT
