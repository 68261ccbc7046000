"""The border to the NVIDIA driver: the few NVML calls that gpuward needs, with its own records and one exception.

Nothing of the binding passes this module: its exceptions are not hashable and fail when compared with others
(nvidia-ml-py 13.615.71), its structures are ctypes. Every call may block for ever in the driver: call from a thread.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, Final, NamedTuple

INVALID_ARGUMENT: Final = 2
NOT_SUPPORTED: Final = 3
NO_PERMISSION: Final = 4
INSUFFICIENT_SIZE: Final = 7
DRIVER_NOT_LOADED: Final = 9
LIBRARY_NOT_FOUND: Final = 12
FUNCTION_NOT_FOUND: Final = 13
GPU_IS_LOST: Final = 15
RESET_REQUIRED: Final = 16
VERSION_MISMATCH: Final = 18
UNKNOWN: Final = 999

_NOT_AVAILABLE: Final = 2**64 - 1
"""What the driver writes where a number is not available (nvml.h, NVML_VALUE_NOT_AVAILABLE)."""

_REASONS: Final = {
    NO_PERMISSION: "no permission to talk to the NVIDIA driver: the daemon's user cannot open the /dev/nvidia* devices",
    DRIVER_NOT_LOADED: "the NVIDIA driver is installed but not loaded: load its kernel module; nvidia-smi must answer",
    LIBRARY_NOT_FOUND: "no NVIDIA driver: libnvidia-ml.so.1 not found; install the driver, or set the inventory "
    'provider to "none", or run on simulated GPUs with --simulate',
    GPU_IS_LOST: "the GPU has fallen off the bus or is otherwise not reachable; the host needs a reboot",
    RESET_REQUIRED: "the GPU needs a reset before it can be used again",
    VERSION_MISMATCH: "the NVIDIA kernel module and libraries differ in version, as after an unattended upgrade; "
    "running workers go on, but nothing new can start: reload the module or reboot",
    UNKNOWN: "the driver does not say what is wrong; in a container or unit, access to /dev/nvidia* may have been cut",
}

_PROCESS_LISTS: Final = (
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetMPSComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses",
)


class NvmlTrouble(Exception):
    """What the driver refused: ``code`` of NVML (nvml.h; 0: not from NVML), ``reason`` for the operator."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.reason = f"{_REASONS.get(code, text)} (NVML error {code})" if code else text
        super().__init__(self.reason)


class GpuIdentity(NamedTuple):
    """What never changes while a GPU is in its slot."""

    uuid: str
    name: str
    pci_bus_id: str


class GpuMemory(NamedTuple):
    """Bytes, None where the driver does not tell. ``used`` is total - free - reserved: drivers differ on theirs."""

    total: int | None = None
    reserved: int | None = None
    used: int | None = None
    free: int | None = None


class Nvml:
    """An NVML session through the module `pynvml` of nvidia-ml-py, imported at the first `open` where none is given."""

    def __init__(self, binding: ModuleType | None = None) -> None:
        self._binding = binding

    def open(self) -> None:
        """Load the library and initialise it. Raises NvmlTrouble."""
        if self._binding is None:
            try:
                self._binding = importlib.import_module("pynvml")
            except ImportError as error:
                raise NvmlTrouble(0, f"no NVML: the Python module pynvml (nvidia-ml-py) is missing: {error}") from error
        self.call("nvmlInit")

    def close(self) -> None:
        """Let the driver go, so that it can be unloaded or a GPU be reset. Raises NvmlTrouble."""
        self.call("nvmlShutdown")

    def driver_version(self) -> str:
        """Return the driver's version. Raises NvmlTrouble."""
        return _text(self.call("nvmlSystemGetDriverVersion"))

    def count(self) -> int:
        """Return how many GPUs the driver lists, lost ones too. Raises NvmlTrouble."""
        return int(self.call("nvmlDeviceGetCount"))

    def handle(self, nvml_index: int) -> object:
        """Return the handle of a GPU in NVML's order, not PCI order. Raises NvmlTrouble, for a lost GPU too."""
        handle: object = self.call("nvmlDeviceGetHandleByIndex", nvml_index)
        return handle

    def uuid(self, handle: object) -> str:
        """Return the UUID of a GPU. Raises NvmlTrouble."""
        return _text(self.call("nvmlDeviceGetUUID", handle))

    def identity(self, handle: object) -> GpuIdentity:
        """Return UUID, name and PCI address. Raises NvmlTrouble."""
        return GpuIdentity(
            uuid=self.uuid(handle),
            name=_text(self.call("nvmlDeviceGetName", handle)),
            pci_bus_id=_text(self.call("nvmlDeviceGetPciInfo", handle).busId).upper(),
        )

    def memory(self, handle: object) -> GpuMemory:
        """Return the memory of a GPU; all None on unified memory. Raises NvmlTrouble."""
        try:
            return self._memory(handle)
        except NvmlTrouble as trouble:
            if trouble.code == NOT_SUPPORTED:
                return GpuMemory()
            raise

    def processes(self, handle: object) -> dict[int, int | None]:
        """Return bytes by pid over compute, MPS and graphics contexts, None where not told. Raises NvmlTrouble."""
        merged: dict[int, int | None] = {}
        for name in _PROCESS_LISTS:
            for process in self._listed(name, handle):
                pid, used = int(process.pid), _available(process.usedGpuMemory)
                known = merged.get(pid)
                merged[pid] = used if known is None else max(known, used or 0)
        return merged

    def _memory(self, handle: object) -> GpuMemory:
        """Version 2 tells the reserved part; drivers before 515 have version 1 only."""
        try:
            memory = self.call("nvmlDeviceGetMemoryInfo", handle, getattr(self._binding, "nvmlMemory_v2", 0x02000028))
            reserved = _available(memory.reserved)
        except NvmlTrouble as trouble:
            if trouble.code not in (FUNCTION_NOT_FOUND, INVALID_ARGUMENT, NOT_SUPPORTED):
                raise
            memory, reserved = self.call("nvmlDeviceGetMemoryInfo", handle), None
        total, free = _available(memory.total), _available(memory.free)
        if not total or free is None:
            return GpuMemory(total=total or None)
        return GpuMemory(total=total, reserved=reserved, used=max(0, total - free - (reserved or 0)), free=free)

    def _listed(self, name: str, handle: object) -> list[Any]:
        """Return a process list: in version 3, in 2 on drivers before 510, empty where the driver has no such list."""
        for function in (name, f"{name}_v2"):
            for _ in range(3):  # the list may grow between the binding's two calls
                try:
                    return list(self.call(function, handle))
                except NvmlTrouble as trouble:
                    if trouble.code == INSUFFICIENT_SIZE:
                        continue
                    if trouble.code not in (FUNCTION_NOT_FOUND, NOT_SUPPORTED):
                        raise
                    break
        return []

    def call(self, name: str, *arguments: object) -> Any:  # noqa: ANN401  the binding has no types
        """Call the binding. Raises NvmlTrouble, whatever NVML trouble the binding raises."""
        binding = self._binding
        function = getattr(binding, name, None)
        if binding is None or function is None:
            raise NvmlTrouble(FUNCTION_NOT_FOUND, f"this pynvml has no {name}")
        try:
            return function(*arguments)
        except binding.NVMLError as error:
            raise NvmlTrouble(int(error.value), f"{name}: {error}") from error
        except getattr(binding, "NVMLLibraryMismatchError", ()) as error:
            raise NvmlTrouble(FUNCTION_NOT_FOUND, f"{name}: {error}") from error


def _available(number: int | None) -> int | None:
    return None if number is None or number == _NOT_AVAILABLE else int(number)


def _text(raw: str | bytes) -> str:
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
