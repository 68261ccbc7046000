"""Numbers and sentences as an operator reads them. Pure; no table, no colour."""

from __future__ import annotations

GIB = 2**30
NAME_END = 5
"""Characters of a name's end that are kept where its middle is left out: ``-a/12``."""

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400
_BIDI = (0x061C, *range(0x200E, 0x2010), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
_UNPRINTABLE = dict.fromkeys((*range(32), *range(127, 160), *_BIDI), " ")
"""C0 and C1 controls, marks that turn the direction of text and line separators: worker output quoted in a reason must
not move the operator's cursor, nor show itself in another order than it has."""

_ESCAPED = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _UNPRINTABLE if chr(code) not in "\n\t"
}


def gib(count: int | None) -> str:
    """Return bytes as GiB with one decimal, ``?`` where nobody knows them."""
    return "?" if count is None else f"{count / GIB:.1f}"


def gib_of(used: int | None, whole: int | None) -> str:
    """Return ``USED/WHOLE GiB``."""
    return f"{gib(used)}/{gib(whole)} GiB"


def duration(seconds: float | None) -> str:
    """Return a duration in its two largest units, ``-`` for None."""
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    if whole < _MINUTE_S:
        return f"{whole}s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S}m{whole % _MINUTE_S:02}s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S}h{whole % _HOUR_S // _MINUTE_S:02}m"
    return f"{whole // _DAY_S}d{whole % _DAY_S // _HOUR_S:02}h"


def one_line(text: str) -> str:
    """Return ``text`` without line breaks, tabs and terminal controls."""
    return text.translate(_UNPRINTABLE).strip()


def for_terminal(text: str) -> str:
    """Return output of a worker in which nothing commands the terminal: controls as their escapes; colours too."""
    return text.replace("\r\n", "\n").translate(_ESCAPED)


def shortened(text: str, width: int) -> str:
    """Return at most ``width`` characters, with an ellipsis where something is missing."""
    if len(text) <= width:
        return text
    return text[: max(0, width - 1)].rstrip() + "…" if width > 0 else ""


def shortened_name(name: str, width: int) -> str:
    """Return at most ``width`` characters of a name, with its end: workers of one pool differ only there."""
    if len(name) <= width or width < 2 * NAME_END:
        return shortened(name, width)
    return f"{name[: width - NAME_END - 1]}…{name[-NAME_END:]}"


def wrapped(text: str, width: int | None, indent: str = "  ") -> list[str]:
    """Return ``text`` in indented lines of at most ``width`` characters, one line where ``width`` is None."""
    if width is None:
        return [indent + one_line(text)]
    room = max(8, width - len(indent))
    lines = [""]
    for word in one_line(text).split():
        rest = word
        if lines[-1] and len(lines[-1]) + 1 + len(rest) > room:
            lines.append("")
        while len(rest) > room:
            lines[-1] = rest[:room]
            rest = rest[room:]
            lines.append("")
        lines[-1] += f" {rest}" if lines[-1] else rest
    return [indent + line for line in lines if line]


def counted(count: int, noun: str) -> str:
    """Return ``1 worker`` or ``2 workers``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def gpu_list(indices: list[int]) -> str:
    """Return GPU indices with commas, in device set order; ``-`` for none."""
    return ",".join(map(str, indices)) if indices else "-"


def bar(used: int | None, claimed: int, total: int | None, cells: int, glyphs: str) -> str:
    """Return ``cells`` characters: used memory, what is claimed beyond it, the rest; ``glyphs`` are these three."""
    if not total:
        return "?" * cells
    used_cells = min(cells, round((used or 0) * cells / total))
    claimed_cells = max(used_cells, min(cells, round(claimed * cells / total)))
    return glyphs[0] * used_cells + glyphs[1] * (claimed_cells - used_cells) + glyphs[2] * (cells - claimed_cells)
