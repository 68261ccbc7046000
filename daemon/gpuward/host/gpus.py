"""The GPUs of this host as the NVIDIA driver tells them: one snapshot at a time, trouble as a state, never as 0 GPUs.

Blocking, and possibly for ever: `gpuward.host.sampler` gives it a thread and a deadline.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Final, Literal, Protocol

from gpuward.host.nvml import GPU_IS_LOST, RESET_REQUIRED, GpuIdentity, GpuMemory, Nvml, NvmlTrouble
from gpuward.host.nvml_vitals import read_vitals
from gpuward.host.program import program
from gpuward.policy.gpus.inventory import UNKNOWN_VITALS, Gpu, GpuHealth, GpuProcess, Snapshot, Vitals


class GpuProvider(Protocol):
    """Where GPU facts come from."""

    @property
    def provider(self) -> Literal["nvml", "simulated", "none"]:
        """What stands in every snapshot."""

    def snapshot(self) -> Snapshot:
        """Return what is true now. May block; driver trouble is a state of the snapshot, not an exception."""

    def close(self) -> None:
        """Let the driver go."""


class NoGpus:
    """The provider of a host whose operator wants no GPUs."""

    provider: Final = "none"

    def snapshot(self) -> Snapshot:
        """Return no GPUs, which is the truth asked for."""
        return Snapshot(
            provider="none", state="ok", taken_at_s=time.monotonic(), reason="the inventory provider is none"
        )

    def close(self) -> None:
        """Nothing to let go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What one GPU told in one round. ``settling``: its processes changed while its memory was read."""

    memory: GpuMemory
    processes: dict[int, int | None]
    vitals: Vitals
    settling: bool
    reason: str


@dataclass(frozen=True, slots=True)
class _Unidentified:
    """A GPU that the driver counts but does not let anyone reach, and that was never seen well."""

    nvml_index: int
    trouble: NvmlTrouble


class NvmlGpus:
    """GPUs through NVML. Opens the driver at the first snapshot, and again after trouble: it recovers by itself.

    A GPU once seen is never forgotten: when the driver lists it no more, it is listed as lost, after the others.
    """

    provider: Final = "nvml"

    def __init__(self, pynvml_module: ModuleType | None = None) -> None:
        self._nvml = Nvml(pynvml_module)
        self._opened = False
        self._driver: str | None = None
        self._by_nvml_index: dict[int, GpuIdentity] = {}
        self._ever_seen: dict[str, Gpu] = {}
        self._names: dict[int, str] = {}

    def snapshot(self) -> Snapshot:
        """Return one round over all GPUs, or state unavailable with the reason."""
        taken_at_s = time.monotonic()
        try:
            gpus = self._round()
        except NvmlTrouble as trouble:
            self.close()
            return self._unavailable(taken_at_s, trouble.reason)
        if not gpus:
            return self._unavailable(
                taken_at_s, f"the NVIDIA driver {self._driver} answers but lists 0 GPUs; see lspci, dmesg"
            )
        return Snapshot(provider="nvml", state="ok", taken_at_s=taken_at_s, gpus=gpus, driver=self._driver)

    def close(self) -> None:
        """Let the driver go, so that it can be unloaded; a later snapshot opens it again."""
        if self._opened:
            self._opened = False
            with contextlib.suppress(NvmlTrouble):
                self._nvml.close()

    def _unavailable(self, taken_at_s: float, reason: str) -> Snapshot:
        return Snapshot(provider="nvml", state="unavailable", taken_at_s=taken_at_s, driver=self._driver, reason=reason)

    def _open(self) -> None:
        if not self._opened:
            self._nvml.open()
            self._opened = True
            self._by_nvml_index.clear()
            self._driver = self._nvml.driver_version()

    def _round(self) -> tuple[Gpu, ...]:
        self._open()
        looks = [self._look(nvml_index) for nvml_index in range(self._nvml.count())]
        present = sorted((look for look in looks if isinstance(look, Gpu)), key=lambda gpu: gpu.pci_bus_id)
        absent = self._absent(present, [look for look in looks if isinstance(look, _Unidentified)])
        gpus = tuple(replace(gpu, index=rank) for rank, gpu in enumerate([*present, *absent]))
        self._ever_seen.update((gpu.uuid, gpu) for gpu in gpus if gpu.pci_bus_id)
        self._names = {process.pid: process.name for gpu in gpus for process in gpu.processes if process.name}
        return gpus

    def _look(self, nvml_index: int) -> Gpu | _Unidentified:
        """Return one GPU; its rank is not known yet."""
        try:
            handle = self._nvml.handle(nvml_index)
            identity = self._identity(nvml_index, handle)
        except NvmlTrouble as trouble:
            known = self._by_nvml_index.get(nvml_index)
            return _Unidentified(nvml_index, trouble) if known is None else self._silent(known, trouble)
        self._by_nvml_index[nvml_index] = identity
        try:
            look = self._look_into(handle)
        except NvmlTrouble as trouble:
            return self._silent(identity, trouble)
        return _answering(identity, look, self._named(look.processes))

    def _identity(self, nvml_index: int, handle: object) -> GpuIdentity:
        """Who is at this index now: where one GPU is gone, the others may have moved up."""
        known = self._by_nvml_index.get(nvml_index)
        return known if known is not None and known.uuid == self._nvml.uuid(handle) else self._nvml.identity(handle)

    def _look_into(self, handle: object) -> _Look:
        """Read processes, memory, processes: only where both lists agree, all three are of one moment."""
        before, _ = self._processes(handle)
        memory = self._nvml.memory(handle)
        processes, reason = self._processes(handle)
        return _Look(
            memory=memory,
            processes=processes,
            vitals=read_vitals(self._nvml, handle),
            settling=before.keys() != processes.keys(),
            reason=reason,
        )

    def _named(self, processes: dict[int, int | None]) -> tuple[GpuProcess, ...]:
        """A name once found is remembered while its process is listed."""
        return tuple(
            GpuProcess(pid=pid, used_bytes=used_bytes, name=self._names.get(pid) or program(pid))
            for pid, used_bytes in sorted(processes.items())
        )

    def _processes(self, handle: object) -> tuple[dict[int, int | None], str]:
        """Return bytes by pid, and why the list is missing where it is: that alone does not make a GPU unusable."""
        try:
            return self._nvml.processes(handle), ""
        except NvmlTrouble as trouble:
            if _health(trouble) == "lost":
                raise
            return {}, f"the processes on this GPU are not known: {trouble.reason}"

    def _silent(self, identity: GpuIdentity, trouble: NvmlTrouble) -> Gpu:
        """Return a GPU that does not answer, with the total that it had: capacity is not what it lost."""
        before = self._ever_seen.get(identity.uuid)
        return Gpu(
            index=-1,
            uuid=identity.uuid,
            name=identity.name,
            pci_bus_id=identity.pci_bus_id,
            total_bytes=before.total_bytes if before else None,
            health=_health(trouble),
            reason=trouble.reason,
        )

    def _absent(self, present: Iterable[Gpu], unidentified: list[_Unidentified]) -> list[Gpu]:
        """Return the GPUs that were here once, and those never reached, as far as these cannot be the former."""
        here = {gpu.uuid for gpu in present}
        gone = sorted(
            (gpu for uuid, gpu in self._ever_seen.items() if uuid not in here), key=lambda gpu: gpu.pci_bus_id
        )
        why = (
            unidentified[0].trouble.reason
            if unidentified
            else "the driver does not list it any more; the host needs a reboot"
        )
        return [_lost(gpu, why) for gpu in gone] + [_unknown(look) for look in unidentified[len(gone) :]]


def _lost(gpu: Gpu, why: str) -> Gpu:
    """A GPU that was here once: its identity and size stay."""
    return replace(
        gpu,
        reserved_bytes=None,
        used_bytes=None,
        free_bytes=None,
        processes=(),
        health="lost",
        reason=why,
        vitals=UNKNOWN_VITALS,
        settling=False,
    )


def _unknown(look: _Unidentified) -> Gpu:
    return Gpu(
        index=-1,
        uuid=f"unidentified-{look.nvml_index}",
        name="unidentified GPU",
        pci_bus_id="",
        total_bytes=None,
        health=_health(look.trouble),
        reason=look.trouble.reason,
    )


def _answering(identity: GpuIdentity, look: _Look, processes: tuple[GpuProcess, ...]) -> Gpu:
    memory, reason = look.memory, look.reason
    if memory.free is None and not reason:
        reason = (
            "the driver does not tell this GPU's memory (unified memory, or too old a driver): claims cannot be checked"
        )
    return Gpu(
        index=-1,
        uuid=identity.uuid,
        name=identity.name,
        pci_bus_id=identity.pci_bus_id,
        total_bytes=memory.total,
        reserved_bytes=memory.reserved,
        used_bytes=memory.used,
        free_bytes=memory.free,
        processes=processes,
        reason=reason,
        vitals=look.vitals,
        settling=look.settling,
    )


def _health(trouble: NvmlTrouble) -> GpuHealth:
    return "lost" if trouble.code in (GPU_IS_LOST, RESET_REQUIRED) else "unknown"
