"""What the host knew of a run's GPUs in its last seconds, errors and memory, as lines of evidence. Pure.

Only what is fresh and told counts: an old sample, or memory that the driver does not tell, says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from gpuward.config.host import XidSettings
from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.gpus.health import XidSeen
from gpuward.policy.gpus.memory import gib
from gpuward.policy.gpus.xids import XidClass, xid_of

XID_REACH_S: Final = 30.0
"""An error this long before the end may be its cause; an older one is another story."""

MEMORY_REACH_S: Final = 10.0
XIDS_SHOWN: Final = 2
HARDWARE: Final = frozenset({"quarantine", "host"})
CLEANUP: Final = 43
"""Also what the driver reports of a process that was killed in the middle of its work."""

CLEANUP_WITHIN_S: Final = 1.0
LATE_WITHIN_S: Final = 2.0
"""The driver may report an error a moment after the process that it ended; of this one it is told."""

NOT_OF_A_GPU: Final = frozenset({"commanded", "hang", "start-timeout"})
"""Causes of ends that the daemon brought about itself: what follows is clean-up."""

EVIDENCE_LINES_MAX: Final = 5
SIGKILL: Final = 9
NEARLY_FULL_RATIO: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class XidHeard:
    """One code on one GPU, heard ``count`` times; ``before_s``: the first of them before the end, negative after it."""

    gpu: str
    code: int
    kind: XidClass
    meaning: str
    before_s: float
    count: int = 1

    @property
    def hardware(self) -> bool:
        """Whether it is a fault of the GPU, not of the program."""
        return self.kind in HARDWARE

    @property
    def named(self) -> str:
        """Code, GPU and meaning."""
        return f"XID {self.code} on {self.gpu} ({self.meaning})"

    @property
    def line(self) -> str:
        """A line of evidence."""
        times = f", {self.count} times, first" if self.count > 1 else ""
        return f"{self.named}{times} {_when(self.before_s)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryHeld:
    """The memory of one GPU in a sample of a run; ``of``: how many GPUs the run had, of which this was the fullest."""

    gpu: str
    used_bytes: int
    claim_bytes: int | None
    others_bytes: int
    free_bytes: int
    total_bytes: int
    before_s: float
    of: int = 1

    @property
    def telling(self) -> bool:
        """Whether it explains a death that nothing else explains."""
        beyond = self.claim_bytes is not None and self.used_bytes > self.claim_bytes
        return beyond or self.free_bytes < self.total_bytes * NEARLY_FULL_RATIO

    @property
    def line(self) -> str:
        """A line of evidence."""
        claim = f" of its {gib(self.claim_bytes)} claim" if self.claim_bytes is not None else ""
        fullest = f" (the fullest of its {self.of} GPUs)" if self.of > 1 else ""
        return (
            f"{self.gpu}: it held {gib(self.used_bytes)}{claim}, others held {gib(self.others_bytes)}, "
            f"{gib(self.free_bytes)} were free, {_when(self.before_s)}{fullest}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanting:
    """What a program told of the GPU on which an allocation failed: bytes that it asked for and that were free."""

    asked_bytes: int
    free_bytes: int

    def fits(self, held: MemoryHeld) -> bool:
        """Whether a sample can be of the same moment; one of a run that held nothing yet never is."""
        return held.used_bytes > 0 and abs(held.free_bytes - self.free_bytes) <= self.asked_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LastMoments:
    """``xids``: those that mean something, faults of a GPU first, then the earliest first."""

    xids: tuple[XidHeard, ...] = ()
    memory: MemoryHeld | None = None

    @property
    def hardware(self) -> XidHeard | None:
        """The first fault of a GPU."""
        return next((xid for xid in self.xids if xid.hardware), None)

    def fault(self, *, swept: bool) -> XidHeard | None:
        """The first fault of the program; ``swept``: what was left of the run was killed, which leaves traces."""
        return next((xid for xid in self.xids if not xid.hardware and not (swept and _is_cleanup(xid))), None)

    @property
    def xid_lines(self) -> tuple[str, ...]:
        """Lines of evidence."""
        return tuple(xid.line for xid in self.xids[:XIDS_SHOWN])


NOTHING_KNOWN: Final = LastMoments()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuHeld:
    """What a sample has of one of a run's GPUs; None where that is not told."""

    gpu: str
    claim_bytes: int | None
    total_bytes: int | None
    used_bytes: int | None
    others_bytes: int | None
    free_bytes: int | None


def xids_heard(
    seen: Iterable[XidSeen], names: Mapping[str, str], settings: XidSettings, ended_at: float, until: float
) -> tuple[XidHeard, ...]:
    """Return what was heard of these GPUs shortly before ``ended_at`` and not after ``until``, both wall time.

    ``names``: the run's GPUs by UUID. Codes that are only recorded (45, clean-up) say nothing.
    """
    found: dict[tuple[str, int], list[float]] = {}
    for one in seen:
        if one.uuid in names and ended_at - XID_REACH_S <= one.at <= until:
            found.setdefault((one.uuid, one.code), []).append(ended_at - one.at)
    heard = []
    for (uuid, code), before in found.items():
        xid = xid_of(code, settings)
        if xid.kind != "record":
            first = XidHeard(
                gpu=names[uuid],
                code=code,
                kind=xid.kind,
                meaning=xid.meaning,
                before_s=max(before),
                count=len(before),
            )
            heard.append(first)
    return tuple(sorted(heard, key=lambda xid: (not xid.hardware, -xid.before_s, xid.code)))


def fullest(gpus: Iterable[GpuHeld], before_s: float) -> MemoryHeld | None:
    """Return the GPU with the least free memory; None where the sample is old, or no GPU tells all of it."""
    gpus = tuple(gpus)
    told = [
        MemoryHeld(
            gpu=one.gpu,
            used_bytes=one.used_bytes,
            claim_bytes=one.claim_bytes,
            others_bytes=one.others_bytes,
            free_bytes=one.free_bytes,
            total_bytes=one.total_bytes,
            before_s=before_s,
            of=len(gpus),
        )
        for one in gpus
        if one.used_bytes is not None
        and one.others_bytes is not None
        and one.free_bytes is not None
        and one.total_bytes is not None
    ]
    if not 0.0 <= before_s <= MEMORY_REACH_S:
        return None
    return min(told, key=lambda held: held.free_bytes, default=None)


def with_late_xid(exit_: LastExit, seen: XidSeen, gpu: str, settings: XidSettings) -> LastExit:
    """Return the end with an error in its evidence that came just behind it; its cause stays what it was."""
    after_s = seen.at - exit_.at
    ours = exit_.cause in NOT_OF_A_GPU or exit_.signal == SIGKILL
    if ours or not 0.0 <= after_s <= LATE_WITHIN_S:
        return exit_
    heard = xids_heard((seen,), {seen.uuid: gpu}, settings, exit_.at, seen.at)
    if not heard or heard[0].named in exit_.xids:
        return exit_
    evidence = (*exit_.evidence[: EVIDENCE_LINES_MAX - 1], heard[0].line)
    return replace(exit_, evidence=evidence, xids=(*exit_.xids, heard[0].named))


def _is_cleanup(xid: XidHeard) -> bool:
    return xid.code == CLEANUP and xid.before_s < CLEANUP_WITHIN_S


def _when(before_s: float) -> str:
    return f"{before_s:.1f} s before the end" if before_s >= 0 else f"{-before_s:.1f} s after the end"
