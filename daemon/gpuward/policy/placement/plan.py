"""The answer to "does this fleet fit this host". Field names are the contract of `gpuctl plan -o json`."""

from __future__ import annotations

from dataclasses import dataclass

from gpuward.config.fleet import Remark


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWorker:
    """One worker and its device set, in order: rank i runs on ``gpus[i]``. ``claim_bytes`` is per GPU."""

    name: str
    pool: str
    gpus: tuple[int, ...]
    gpu_uuids: tuple[str, ...]
    claim_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole placement, or a refusal: with any problem ``workers`` is empty, never half a fleet."""

    workers: tuple[PlannedWorker, ...]
    problems: tuple[Remark, ...]
    warnings: tuple[Remark, ...]
    gpus_needed: int
    gpus_available: int

    @property
    def ok(self) -> bool:
        """Whether the fleet fits."""
        return not self.problems

    def devices(self, worker: str) -> PlannedWorker | None:
        """Return what this worker got, None where the plan has no such worker."""
        for planned in self.workers:
            if planned.name == worker:
                return planned
        return None
