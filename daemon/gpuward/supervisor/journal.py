"""Events: numbered, kept in a ring, published, and logged. Every reason is passed on unchanged."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from structlog.typing import FilteringBoundLogger

from gpuward.policy.reasons import By
from gpuward.policy.worker.life import Phase, Worker
from gpuward.policy.worker.phases import at_present

KEPT = 4096
_WARNING_PHASES = frozenset({Phase.BACKOFF, Phase.RELEASING, Phase.FAILED})
_LOGGED = frozenset({"worker", "gpu", "run", "cause", "by"})

YEAR_10000 = 253402300800.0
"""The first second that a date of four digits cannot name; a clock that was never set, or set wrong, may be there."""


def rfc3339(at: float) -> str:
    """Wall time as text, UTC with milliseconds; a time that no calendar has as the nearest that one has."""
    at = min(max(at, 0.0), YEAR_10000 - 1)
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Journal:
    """The events of one daemon life (``epoch``), oldest first; ``seq`` counts from 1."""

    def __init__(self, epoch: int, log: FilteringBoundLogger, publish: Callable[[dict[str, Any]], None]) -> None:
        self.epoch = epoch
        self.log = log
        self.seq = 0
        self._publish = publish
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT)

    @property
    def first_seq(self) -> int:
        """Number of the oldest event that is still kept."""
        return self._kept[0]["seq"] if self._kept else self.seq + 1

    def since(self, seq: int) -> list[dict[str, Any]]:
        """Return the kept events after ``seq``."""
        return [event for event in self._kept if event["seq"] > seq]

    def phase(self, old: Worker | None, new: Worker) -> None:
        """A worker changed its phase."""
        before = old.phase if old is not None else None
        cause = new.last_exit.cause if new.last_exit and (old is None or old.last_exit != new.last_exit) else None
        level = "warning" if new.phase in _WARNING_PHASES and before is not Phase.BACKOFF else "info"
        reason = at_present(new, time.monotonic())
        self.note(f"worker-{new.phase}", reason, worker=new.name, run=new.run, cause=cause, level=level, by=new.by)

    def note(
        self,
        kind: str,
        reason: str,
        *,
        worker: str | None = None,
        gpu: int | None = None,
        run: int | None = None,
        cause: str | None = None,
        level: str = "info",
        by: By | None = None,
    ) -> None:
        """Something happened; ``by``: who asked for it."""
        self.seq += 1
        event: dict[str, Any] = {
            "epoch": self.epoch,
            "seq": self.seq,
            "at": rfc3339(time.time()),
            "kind": kind,
            "worker": worker,
            "gpu": gpu,
            "reason": reason,
            "run": run,
        }
        if cause is not None:
            event["cause"] = cause
        if by is not None:
            event["by"] = by.user
        self._kept.append(event)
        self._publish(event)
        fields = {key: value for key, value in event.items() if key in _LOGGED and value is not None}
        getattr(self.log, level)(kind, reason=reason, **fields)
