"""What the GPUs told of each run, for its record and its cause: the latest samples and errors. Decides nothing."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from gpuward.config.host import XidSettings
from gpuward.host.records import MemorySample
from gpuward.policy.diagnosis.gpu_evidence import MEMORY_REACH_S, GpuHeld, LastMoments, MemoryHeld, fullest, xids_heard
from gpuward.policy.gpus.health import XidSeen
from gpuward.policy.gpus.inventory import Gpu, Snapshot
from gpuward.policy.worker.life import Worker
from gpuward.supervisor.attribution import Attribution

KEPT: Final = 120
"""Samples per run: two minutes at the usual pace."""


XIDS_KEPT: Final = 8
"""Per GPU and code: a flood of one code must not wash the others away."""


def wall_time(at_s: float) -> float:
    """Return the wall time of an instant of the monotonic clock."""
    return time.time() - (time.monotonic() - at_s)


class Span(NamedTuple):
    """When a run ended, and since when the daemon was ending it (None: it was not); wall time."""

    ended_at: float
    stopped_at: float | None


class Traces:
    """Samples and peaks by worker, of the run that lives or ended last; errors of the GPUs, the latest of each code."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[MemorySample]] = {}
        self._peaks: dict[str, dict[str, int]] = {}
        self._xids: dict[tuple[str, int], deque[XidSeen]] = {}

    def observe(self, snapshot: Snapshot, workers: Mapping[str, Worker], attribution: Attribution) -> None:
        """Take in what living runs have. Stale samples tell nothing."""
        if snapshot.state != "ok":
            return
        at = wall_time(snapshot.taken_at_s)
        for worker in workers.values():
            if not worker.alive or not worker.run_uuids:
                continue
            mine = dict(attribution.used_bytes.get(worker.name, {}))
            gpus = [gpu for gpu in snapshot.gpus if gpu.uuid in worker.run_uuids]
            sample = MemorySample(
                at=at,
                used_bytes=mine,
                free_bytes={gpu.uuid: gpu.free_bytes for gpu in gpus},
                others_bytes={gpu.uuid: _others(gpu, worker.name, attribution) for gpu in gpus},
            )
            self._samples.setdefault(worker.name, deque(maxlen=KEPT)).append(sample)
            peaks = self._peaks.setdefault(worker.name, {})
            peaks.update({uuid: max(peaks.get(uuid, 0), count) for uuid, count in mine.items()})

    def hear(self, seen: XidSeen) -> None:
        """Take in an error of a GPU."""
        self._xids.setdefault((seen.uuid, seen.code), deque(maxlen=XIDS_KEPT)).append(seen)

    def xids(self) -> Iterator[XidSeen]:
        """Return the errors that are remembered."""
        return (seen for series in self._xids.values() for seen in series)

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

    def last_moments(
        self, worker: Worker, claims: Mapping[Gpu, int | None], settings: XidSettings, span: Span
    ) -> LastMoments:
        """Return what the run's GPUs, each with the run's claim on it, told before it ended.

        What was heard after the daemon began to end it is clean-up, not a cause.
        """
        names = {uuid: f"GPU {uuid}" for uuid in worker.run_uuids} | {gpu.uuid: f"GPU {gpu.index}" for gpu in claims}
        until = math.inf if span.stopped_at is None else span.stopped_at
        return LastMoments(
            xids=xids_heard(self.xids(), names, settings, span.ended_at, until),
            memory=self._memory(worker.name, claims, span.ended_at),
        )

    def _memory(self, worker: str, claims: Mapping[Gpu, int | None], ended_at: float) -> MemoryHeld | None:
        sample = self.last_sample(worker, ended_at)
        if sample is None:
            return None
        held = (
            GpuHeld(
                gpu=f"GPU {gpu.index}",
                claim_bytes=claim,
                total_bytes=gpu.total_bytes,
                used_bytes=sample.used_bytes.get(gpu.uuid, 0),
                others_bytes=sample.others_bytes.get(gpu.uuid),
                free_bytes=sample.free_bytes.get(gpu.uuid),
            )
            for gpu, claim in claims.items()
        )
        return fullest(held, ended_at - sample.at)

    def last_sample(self, worker: str, ended_at: float) -> MemorySample | None:
        """Return the last sample before the end in which the run still held at least half of what it had.

        Its processes end one after the other, so that the very last sample may show a run which has let go already.
        """
        fresh = [one for one in self.samples(worker) if 0.0 <= ended_at - one.at <= MEMORY_REACH_S]
        most = max((_sum(one) for one in fresh), default=0)
        return next((one for one in reversed(fresh) if 2 * _sum(one) >= most), None)


def _sum(sample: MemorySample) -> int:
    return sum(sample.used_bytes.values())


def _others(gpu: Gpu, worker: str, attribution: Attribution) -> int | None:
    """What everybody else has of a GPU; None where it or its share is not told, or is not of one moment."""
    if gpu.used_bytes is None or gpu.settling or (worker, gpu.uuid) in attribution.untold:
        return None
    return max(0, gpu.used_bytes - attribution.used_bytes.get(worker, {}).get(gpu.uuid, 0))
