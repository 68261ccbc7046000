"""The simulated GPUs as one worker process sees them: which are visible, what is free, and holding some of it."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Mapping
from typing import Final, NamedTuple

from gpuward.sim.claims import NO_PROCESS, ClaimReader, write_claim

GIB: Final = 1024**3
_ALONE: Final = '[{"index":0,"uuid":"GPU-51000000-0000-4000-8000-000000000000","total_bytes":85520809984}]'
"""The one H100 of a worker that was started by hand, without a daemon."""


class MemoryRefused(Exception):
    """vLLM's check of free memory at start did not pass; the text is vLLM's."""


class CudaOutOfMemory(Exception):
    """An allocation did not fit; the text is PyTorch's."""


class Device(NamedTuple):
    """A GPU as the daemon describes it in ``GPUWARD_SIM_GPUS``; ``number`` is its index in PCI order."""

    number: int
    uuid: str
    total_bytes: int
    reserved_bytes: int


def known_devices(environment: Mapping[str, str]) -> tuple[Device, ...]:
    """Return the GPUs of the simulated host, in PCI order."""
    described = json.loads(environment.get("GPUWARD_SIM_GPUS") or _ALONE)
    return tuple(
        Device(int(gpu["index"]), str(gpu["uuid"]), int(gpu["total_bytes"]), int(gpu.get("reserved_bytes", 0)))
        for gpu in described
    )


def visible_devices(devices: tuple[Device, ...], environment: Mapping[str, str]) -> tuple[Device, ...]:
    """Return what ``CUDA_VISIBLE_DEVICES`` leaves, in its order: all where it is unset or empty, as vLLM takes it.

    As in CUDA the first entry that names nothing ends the list. Raises ValueError for a UUID where
    ``GPUWARD_SIM_UUIDS`` is ``refuse``: vLLM releases before 0.24 crash on them (vLLM issue 20939).
    """
    wanted = environment.get("CUDA_VISIBLE_DEVICES", "").strip()
    if not wanted:
        return devices
    by_name = {str(device.number): device for device in devices}
    if environment.get("GPUWARD_SIM_UUIDS") != "refuse":
        by_name |= {device.uuid: device for device in devices}
    visible: list[Device] = []
    for entry in wanted.split(","):
        device = by_name.get(entry.strip())
        if device is None and entry.strip().startswith(("GPU-", "MIG-")) and len(by_name) == len(devices):
            raise ValueError(f"invalid literal for int() with base 10: {entry.strip()!r}")
        if device is None or device in visible:
            break
        visible.append(device)
    return tuple(visible)


class RankMemory:
    """What one rank holds on its GPU. Without a claims directory nothing is held, and all but the own share is free."""

    def __init__(self, device: Device, local_rank: int, claims_dir: str | None, lag_s: float = 0.0) -> None:
        self._device = device
        self._local_rank = local_rank
        self._claims_dir = claims_dir
        self._lag_s = lag_s
        self._held_bytes = 0

    def requested_bytes(self, utilization: float) -> int:
        """Return the budget: total x utilization, rounded up (vLLM v1/worker/utils.py, request_memory)."""
        return math.ceil(self._device.total_bytes * utilization)

    def left_by_others_bytes(self) -> int:
        """Return what other processes leave of the GPU."""
        return self._free()[0] + self._held_bytes

    def check(self, utilization: float) -> None:
        """Refuse to start where less than the budget is free. Raises MemoryRefused."""
        requested_bytes, (free_bytes, _) = self.requested_bytes(utilization), self._free()
        if free_bytes < requested_bytes:
            free, total = _gib(free_bytes), _gib(self._device.total_bytes)
            device = f"device cuda:{self._local_rank} ({free}/{total} GiB)"
            raise MemoryRefused(
                f"ValueError: Free memory on {device} on startup is less than desired GPU memory "
                f"utilization ({utilization:g}, {_gib(requested_bytes)} GiB). Decrease GPU memory utilization or "
                "reduce GPU memory used by other processes."
            )

    def hold(self, wanted_bytes: int) -> None:
        """Hold ``wanted_bytes`` from now on. Raises CudaOutOfMemory, holding what it held."""
        if self._claims_dir is None:
            self._held_bytes = wanted_bytes
            return
        turn = os.open(self._claims_dir, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)  # a real GPU gives one byte to one process, also when two ask at once
            growth_bytes = wanted_bytes - self._held_bytes
            if growth_bytes > self._free()[0]:
                raise CudaOutOfMemory(self.out_of_memory(growth_bytes))
            write_claim(self._claims_dir, {self._device.uuid: wanted_bytes}, self._lag_s)
            self._held_bytes = wanted_bytes
        finally:
            os.close(turn)

    def out_of_memory(self, wanted_bytes: int) -> str:
        """Return PyTorch's message for an allocation of ``wanted_bytes`` that fails now."""
        free_bytes, others = self._free()
        neighbours = "".join(
            f"Process {pid} has {_size(held)} memory in use. " for pid, held in others.items() if pid != NO_PROCESS
        )
        return (
            f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {_size(wanted_bytes)}. "
            f"GPU {self._local_rank} has a total capacity of {_size(self._device.total_bytes)} "
            f"of which {_size(free_bytes)} is free. {neighbours}"
            f"Including non-PyTorch memory, this process has {_size(self._held_bytes)} memory in use."
        )

    def _free(self) -> tuple[int, dict[int, int]]:
        """Return free bytes, and what other processes hold, by pid."""
        others: dict[int, int] = {}
        if self._claims_dir is not None:
            names = (self._device.uuid, str(self._device.number))
            for claim in ClaimReader(self._claims_dir).read():
                held_bytes = sum(share_bytes for gpu, share_bytes in claim.shares if gpu in names)
                if held_bytes and claim.pid != os.getpid():
                    others[claim.pid] = others.get(claim.pid, 0) + held_bytes
        usable_bytes = self._device.total_bytes - self._device.reserved_bytes
        return max(0, usable_bytes - self._held_bytes - sum(others.values())), others


def _gib(size_bytes: int) -> str:
    return f"{round(size_bytes / GIB, 2)}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB" if size_bytes >= GIB else f"{size_bytes / 1024**2:.2f} MiB"
