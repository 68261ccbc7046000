"""What is held of living runs, and where news of them goes. Records, and the tasks that work for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from gpuward.config.fleet import Pool
from gpuward.host.address import Readiness
from gpuward.host.live import LiveRun
from gpuward.policy.diagnosis.gpu_evidence import LastMoments
from gpuward.policy.worker.life import Event, Worker
from gpuward.policy.worker.liveness import Report
from gpuward.supervisor.output import LogReading
from gpuward.supervisor.postmortem import DeadRun, Findings


@dataclass(slots=True)
class Handle:
    """What is held of one living run.

    ``died_unasked``: its main process was dead before anybody asked for that. ``rested``: nothing was left of its tree
    when somebody looked, and yet the keeper had not ended.
    """

    live: LiveRun
    marker: str
    readiness: Readiness | None
    started_s: float
    reading: LogReading
    probing: asyncio.Task[None] | None = None
    liveness: Report | None = None
    died_unasked: bool = False
    rested: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Where the runner's news goes, and where it looks up what is wanted of a worker."""

    submit: Callable[[str, Event], None]
    ended: Callable[[Findings], None]
    worker: Callable[[str], Worker | None]
    pool: Callable[[str], Pool | None]
    moments: Callable[[DeadRun, float], LastMoments]
    port_blocks: Callable[[], Mapping[str, int]]


class Tasks:
    """Tasks of the loop; an unexpected error in one is one of the daemon: it ends, the keepers hold the workers."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Work beside the loop until done."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def cancel(self) -> None:
        """End them all."""
        for task in self._tasks:
            task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler({"message": "a run's task failed", "exception": error})
