"""Why a worker's run is being ended, and what a worker waits for: records with a kind. Sentences are for people only.

Nothing decides by a sentence; `phases.sentence` puts together what status shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

EndingKind: TypeAlias = Literal[
    "stop",
    "restart",
    "roll",
    "definition",
    "move",
    "reset",
    "scale",
    "left-fleet",
    "halt",
    "start-timeout",
    "hang",
    "breach",
    "spare",
]

WaitKind: TypeAlias = Literal[
    "probe",
    "grace",
    "killed",
    "outlives-kill",
    "dependents",
    "endpoints",
    "neighbour",
    "memory",
    "process",
    "sample",
    "inventory",
    "turn",
    "occupied",
    "first-worker",
    "first-worker-failed",
    "dependency-down",
    "dependency-failed",
    "dependency-starting",
    "gpu-closed",
    "gpu-lost",
    "gpu-missing",
    "gpu-excluded",
    "no-devices",
    "port",
    "ports-moved",
    "lease",
    "earlier-run",
    "spawn",
    "does-not-launch",
]

ONLY_A_PERSON: Final[frozenset[WaitKind]] = frozenset(
    {
        "dependency-down",
        "dependency-failed",
        "does-not-launch",
        "first-worker-failed",
        "gpu-closed",
        "gpu-excluded",
        "gpu-lost",
        "no-devices",
    }
)
"""Waits that nothing but a person's doing ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class By:
    """Who asked; ``user`` is the number where there is no name, ``pid`` of the process that asked.

    A signal tells nobody: ``uid`` is None, ``user`` its name.
    """

    uid: int | None
    user: str
    pid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Why the run that lives is being ended; ``why`` is the sentence, shown whole.

    ``then``: rest until the next command, start again, or judge by the cause. ``by``: who asked, None where gpuward
    itself did. ``waited_s``: how long it waited for others before it went ahead without them.
    ``hung``: the hang that it was being killed for already.
    """

    kind: EndingKind
    why: str
    then: Literal["rest", "start", "judge"]
    by: By | None = None
    waited_s: float | None = None
    hung: str = ""

    @property
    def hang(self) -> str:
        """What was seen of the hang that the run was killed for, also where a command came meanwhile; else empty."""
        return self.why if self.kind == "hang" else self.hung


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """What a worker waits for in its phase; ``on``: the worker, GPU or port concerned, empty where it is none."""

    kind: WaitKind
    text: str
    on: str = ""

    @property
    def needs_person(self) -> bool:
        """Whether it lasts until a person does something."""
        return self.kind in ONLY_A_PERSON


def asked_with(what: str, reason: str, by: By | None) -> str:
    """What was done, with the reason that was given and who asked: ``GPU 1 is cordoned (burns in, by bob)``."""
    told = [word for word in (reason, f"by {by.user}" if by is not None else "") if word]
    return f"{what} ({', '.join(told)})" if told else what


def named(why: str, by: By | None) -> str:
    """The sentence with the person who asked."""
    return why if by is None else f"{why} ({by.user})"
