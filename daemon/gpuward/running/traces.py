"""The latest memory samples of each run, for its record: what its GPUs held before it ended. Decides nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Final

from gpuward.host.records import MemorySample
from gpuward.policy.inventory import Snapshot
from gpuward.policy.life import Worker

KEPT: Final = 120
"""Samples per run: two minutes at the usual pace."""


class Traces:
    """Samples and peaks by worker, of the run that lives or ended last."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[MemorySample]] = {}
        self._peaks: dict[str, dict[str, int]] = {}

    def observe(self, snapshot: Snapshot, workers: Mapping[str, Worker], used: Mapping[str, Mapping[str, int]]) -> None:
        """Take in what living runs have; ``used`` is worker -> GPU UUID -> bytes. Stale samples tell nothing."""
        if snapshot.state != "ok":
            return
        at = time.time()
        for worker in workers.values():
            if not worker.alive or not worker.run_uuids:
                continue
            mine = dict(used.get(worker.name, {}))
            free = {gpu.uuid: gpu.free_bytes for gpu in snapshot.gpus if gpu.uuid in worker.run_uuids}
            sample = MemorySample(at=at, used_bytes=mine, free_bytes=free)
            self._samples.setdefault(worker.name, deque(maxlen=KEPT)).append(sample)
            peaks = self._peaks.setdefault(worker.name, {})
            peaks.update({uuid: max(peaks.get(uuid, 0), count) for uuid, count in mine.items()})

    def begin(self, worker: str) -> None:
        """A new run starts: forget the one before."""
        self._samples.pop(worker, None)
        self._peaks.pop(worker, None)

    def samples(self, worker: str) -> tuple[MemorySample, ...]:
        """Return the latest samples, oldest first."""
        return tuple(self._samples.get(worker, ()))

    def peaks(self, worker: str) -> dict[str, int]:
        """Return the most bytes that were seen, by GPU UUID."""
        return self._peaks.get(worker, {})
