"""What is left of a run whose main process is dead: records, and the sentence about them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NAMED = 3
"""So many processes are named; of the others only how many they are."""

STATES = {"D": "in the kernel, where no signal reaches it", "T": "stopped", "t": "stopped by a debugger"}
"""States of proc(5) that keep a process from dying, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """One process that SIGKILL has not ended; ``state`` is the letter of proc(5), ``user`` a name or a number."""

    pid: int
    name: str
    state: str
    user: str


def said(left: Sequence[Left], since_s: float) -> str:
    """Name who is waited for, and for how long already; nothing where nobody is known."""
    if not left:
        return f"processes outlive SIGKILL since {since_s:.0f} s" if since_s else "waits for the rest of its processes"
    more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
    named = ", ".join(_one(one) for one in left[:NAMED])
    return f"waits since {since_s:.0f} s for {named}{more}: SIGKILL has not ended what would run beside the next start"


def _one(left: Left) -> str:
    state = f"state {left.state}" + (f", {STATES[left.state]}" if left.state in STATES else "")
    return f"pid {left.pid} ({left.name}, user {left.user}, {state})"
