"""What is known of the host's GPUs at one moment. Records only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GpuHealth = Literal["ok", "lost", "unknown"]
InventoryState = Literal["ok", "stale", "released", "unavailable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that holds memory on a GPU; ``used_bytes`` None where the driver does not tell."""

    pid: int
    used_bytes: int | None
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """How a GPU does, each None where the driver does not tell: unknown is never 0.

    ``throttled_by``: why its clocks are held down (not those reasons that are normal, such as being idle).
    ``ecc_uncorrected``: errors since the driver was loaded. ``rows_pending``: a row of memory is replaced at the next
    reset; ``rows_failed``: one could not be. ``recovery``: the driver's own verdict, "" where it asks for nothing.
    """

    busy_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    throttled_by: tuple[str, ...] | None = None
    ecc_uncorrected: int | None = None
    rows_pending: bool | None = None
    rows_failed: bool | None = None
    recovery: str | None = None
    compute_mode: str | None = None
    mig: bool | None = None


UNKNOWN_VITALS = Vitals()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU (or MIG instance) at one moment; memory in bytes, None where the driver does not tell.

    ``index`` is the rank in PCI bus order, ``used_bytes`` is total - free - reserved. ``settling``: processes came or
    went while this GPU was looked at, so its memory and its processes may not be of one moment.
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
    vitals: Vitals = UNKNOWN_VITALS
    settling: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One round over all GPUs, in PCI bus order.

    ``state``: ok; stale (``gpus`` are of ``taken_at_s``, the driver has not answered since); released (the
    same, on the operator's word); unavailable (no inventory at all, ``gpus`` is empty and means nothing). ``reason``
    says why for all but ok.
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
