"""What is known of the host's GPUs at one moment. Records only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GpuHealth = Literal["ok", "lost", "unknown"]
InventoryState = Literal["ok", "stale", "unavailable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that holds memory on a GPU; ``used_bytes`` None where the driver does not tell."""

    pid: int
    used_bytes: int | None
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU (or MIG instance) at one moment; memory in bytes, None where the driver does not tell.

    ``index`` is the rank in PCI bus order, ``used_bytes`` is total - free - reserved.
    """

    index: int
    uuid: str
    name: str
    pci_bus_id: str
    total_bytes: int | None
    reserved_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    processes: tuple[GpuProcess, ...] = ()
    health: GpuHealth = "ok"
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One round over all GPUs, in PCI bus order.

    ``state``: ok; stale (``gpus`` are of ``taken_at_s``, the driver has not answered since); unavailable
    (no inventory at all, ``gpus`` is empty and means nothing). ``reason`` says why for the last two.
    ``taken_at_s`` is of the monotonic clock.
    """

    provider: Literal["nvml", "simulated", "none"]
    state: InventoryState
    taken_at_s: float
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    reason: str = ""

    @property
    def simulated(self) -> bool:
        """Whether these GPUs exist only as a simulation."""
        return self.provider == "simulated"

    def gpu(self, uuid: str) -> Gpu | None:
        """Return the GPU with this UUID, None where it is not in the round."""
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu
        return None
