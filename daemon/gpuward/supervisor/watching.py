"""Asks living runs: whether they are ready, whether they hang, how many requests they finish. Decides nothing."""

from __future__ import annotations

from gpuward.host.address import Readiness
from gpuward.policy.worker.life import BecameReady, Drained, Hung, ProbeMissed
from gpuward.policy.worker.liveness import Report
from gpuward.supervisor.draining import until_drained
from gpuward.supervisor.equipment import Equipment
from gpuward.supervisor.handles import Handle, Reports, Tasks
from gpuward.supervisor.liveness import until_hung
from gpuward.supervisor.readiness import until_ready


class Watching:
    """For the loop's thread: one question at a time for each run. What is answered goes to ``reports``."""

    def __init__(self, equipment: Equipment, reports: Reports, tasks: Tasks) -> None:
        self._equipment = equipment
        self._reports = reports
        self._tasks = tasks

    def until_ready(self, handle: Handle) -> None:
        """Ask a run that has started until it is ready, then whether it hangs."""
        if handle.readiness is not None:
            handle.probing = self._tasks.begin(self._probe(handle, handle.readiness))

    def until_hung(self, handle: Handle) -> None:
        """Ask a run that is ready whether it hangs."""
        if handle.readiness is not None:
            handle.probing = self._tasks.begin(self._watch(handle, handle.readiness))

    def until_drained(self, handle: Handle) -> None:
        """Ask a run that is to end how many requests it still works on, where it can be asked."""
        if handle.readiness is not None and handle.readiness.model is not None:
            name, run = handle.live.worker, handle.live.run
            counted = until_drained(handle.readiness, lambda count: self._reports.submit(name, Drained(run, count)))
            handle.probing = self._tasks.begin(counted)

    def stop(self, handle: Handle) -> None:
        """Ask no more."""
        if handle.probing is not None:
            handle.probing.cancel()
            handle.probing = None

    async def _probe(self, handle: Handle, readiness: Readiness) -> None:
        name, run = handle.live.worker, handle.live.run
        await until_ready(
            readiness,
            log=self._equipment.log_path(name, run),
            started_s=handle.started_s,
            tree=handle.live.tree,
            missed=lambda reason: self._reports.submit(name, ProbeMissed(run, reason)),
            output_trouble=lambda: self._equipment.runs.log_trouble(name, run),
            asks=lambda: (pool := self._reports.pool(name)) is not None and pool.liveness.canary,
        )
        self._reports.submit(name, BecameReady(run))
        await self._watch(handle, readiness)

    async def _watch(self, handle: Handle, readiness: Readiness) -> None:
        """Tell when a ready run hangs, where it can be asked at all."""
        name, run = handle.live.worker, handle.live.run

        def note(report: Report) -> None:
            handle.liveness = report

        if readiness.url is not None:
            reason = await until_hung(readiness, lambda: self._reports.pool(name), note)
            self._reports.submit(name, Hung(run, reason))
