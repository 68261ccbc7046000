"""Keeps the endpoint files in line with who is ready, and tells the operator's command of each change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gpuward.config.fleet import Pool
from gpuward.config.host import EndpointSettings
from gpuward.engines.endpoint import base_url
from gpuward.host.endpoint_files import Endpoint, PoolEndpoints, write_endpoints
from gpuward.host.hook import run_hook
from gpuward.policy.fleet.endpoints import Listing, listed
from gpuward.policy.fleet.step import FleetState
from gpuward.policy.worker.life import Worker
from gpuward.supervisor.journal import rfc3339
from gpuward.supervisor.traces import wall_time

ON_CHANGE_WITHIN_S: Final = 10.0

AGAIN_AFTER_S: Final = 5.0
"""Pause after files could not be written, or the command failed, before both are tried again."""

Change = Callable[[Callable[[Listing], Listing]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """``change`` changes the listing in the state; ``notice`` tells a trouble, and nothing where it is over."""

    change: Change
    notice: Callable[[str, str], None]
    state: Callable[[], FleetState]


class Endpoints:
    """The files of one daemon. `look` is for the loop's thread; one write or command runs at a time, beside it."""

    def __init__(self, settings: EndpointSettings, reports: Reports) -> None:
        self._settings = settings
        self._reports = reports
        self._known: tuple[PoolEndpoints, ...] | None = None
        self._since: dict[tuple[str, int], str] = {}
        self._turning: asyncio.Task[None] | None = None
        self._open = False

    def open(self) -> None:
        """Begin, now that every worker is known: until then the files of the daemon before are right."""
        self._open = True
        self.look()

    def look(self) -> None:
        """Have the files say who is ready now; whatever changes meanwhile is written after that."""
        if self._settings.directory is None or not self._open or self._turning is not None:
            return
        if self._wanted() != self._known:
            self._turning = asyncio.get_running_loop().create_task(self._turn(Path(self._settings.directory)))

    async def _turn(self, directory: Path) -> None:
        trouble = ""
        try:
            wanted = self._wanted()
            names = [one.worker for pool in wanted for one in pool.endpoints]
            self._reports.change(lambda listing: listing.telling(names))
            trouble = await asyncio.to_thread(self._tell, directory, wanted)
            self._reports.notice("endpoints", trouble)
            self._known = None if trouble else wanted
            workers = tuple(self._reports.state().workers)
            self._reports.change(lambda listing: listing.as_told(names, workers, time.monotonic()))
            if trouble:
                await asyncio.sleep(AGAIN_AFTER_S)
        finally:
            self._turning = None
        self.look()

    def _tell(self, directory: Path, wanted: tuple[PoolEndpoints, ...]) -> str:
        """Write, then run the command where something has changed, or may have under an earlier daemon."""
        try:
            changed = write_endpoints(directory, wanted)
        except OSError as error:
            return f"cannot write the endpoints in {directory}: {error.strerror}; proxies know an earlier state"
        if not self._settings.on_change or not (changed or self._known is None):
            return ""
        failed = run_hook(self._settings.on_change, ON_CHANGE_WITHIN_S)
        return f"on-change of [endpoints] failed: {failed}; proxies may know an earlier state" if failed else ""

    def _wanted(self) -> tuple[PoolEndpoints, ...]:
        state = self._reports.state()
        lists = listed(state.workers.values(), state.pools)
        return tuple(
            PoolEndpoints(
                pool=name, model=state.pools[name].model, endpoints=tuple(self._of(members, state.pools[name]))
            )
            for name, members in lists.items()
        )

    def _of(self, workers: Iterable[Worker], pool: Pool) -> Iterable[Endpoint]:
        for worker in workers:
            url = base_url(pool, worker.index, worker.port)
            if url is not None:
                since = self._since.setdefault((worker.name, worker.run), _since(worker))
                yield Endpoint(worker=worker.name, url=url, since=since)


def _since(worker: Worker) -> str:
    return rfc3339(wall_time(worker.ready_since_s or 0.0))
