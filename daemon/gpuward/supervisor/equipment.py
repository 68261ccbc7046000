"""What the supervisor works with: settings and the parts of `host`, put together by the composition root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpuward.config.host import HostSettings
from gpuward.engines.launch import HostContext
from gpuward.host.cgroups import Cgroups
from gpuward.host.leases import Leases
from gpuward.host.own_process import Reaper
from gpuward.host.records import Records
from gpuward.host.runs import Runs
from gpuward.host.runtime_directory import RuntimeDirectory

if TYPE_CHECKING:
    from gpuward.host.sampler import Sampler
    from gpuward.host.xids import XidListener


@dataclass(frozen=True, slots=True, kw_only=True)
class Equipment:
    """``instance`` marks this daemon's processes; ``tick_s`` is the longest pause of the loop.

    ``xids`` None: a host without NVML.
    """

    settings: HostSettings
    context: HostContext
    records: Records
    runtime: RuntimeDirectory
    runs: Runs
    sampler: Sampler
    xids: XidListener | None
    leases: Leases
    logs: Path
    instance: str
    reaper: Reaper
    cgroups: Cgroups
    tick_s: float

    def log_path(self, worker: str, run: int) -> Path:
        """Where the output of a run goes."""
        return self.logs / worker / f"{run}.log"
