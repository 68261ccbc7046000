"""A stand-in for libnvidia-ml.so.1 beneath the real binding: every line of pynvml runs, with its quirks, and no driver.

For tests of what reads NVML; `gpuward.sim.gpus` is the simulated host.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from types import ModuleType
from typing import Any, Final

SUCCESS: Final = 0
_NOT_SUPPORTED: Final = 3
_TIMEOUT: Final = 10
_XID_EVENTS: Final = 8
_NOT_AVAILABLE: Final = 2**64 - 1


@dataclass
class DriverGpu:
    """One GPU as the driver has it; set ``error`` to an NVML code and every call about it fails with that.

    Processes are (pid, bytes or None where the driver does not tell). ``memory_error`` and ``vitals_error`` fail
    those calls only.
    ``fields`` are values by NVML_FI_DEV_* number; those that are missing, and what else is None, are not supported.
    ``while_asked`` runs in each memory call: what happens on the GPU while somebody looks at it.
    """

    uuid: str
    bus_id: str
    name: str = "NVIDIA H100 80GB HBM3"
    total_bytes: int = 85520809984
    reserved_bytes: int = 577765376
    free_bytes: int = 84943044608
    compute: list[tuple[int, int | None]] = field(default_factory=list)
    graphics: list[tuple[int, int | None]] = field(default_factory=list)
    mps: list[tuple[int, int | None]] = field(default_factory=list)
    error: int = SUCCESS
    memory_error: int = SUCCESS
    processes_error: int = SUCCESS
    vitals_error: int = SUCCESS
    busy_percent: int | None = 0
    temperature_c: int | None = 33
    throttles: int | None = 1
    compute_mode: int | None = 0
    mig: int | None = None
    fields: dict[int, int] = field(default_factory=lambda: {4: 0, 144: 0, 145: 0, 186: 71_000, 230: 0})
    while_asked: Callable[[], None] | None = None


class FakeDriver:
    """The C functions that gpuward's border reaches, by their symbols. ``missing`` symbols are not in this "library".

    ``installed`` False: there is no library to load. ``init_error``, ``count_error``: NVML codes of those calls.
    """

    def __init__(self, *gpus: DriverGpu, version: str = "570.124.06") -> None:
        self.gpus = list(gpus)
        self.version = version
        self.installed = True
        self.init_error = SUCCESS
        self.count_error = SUCCESS
        self.missing: set[str] = set()
        self.calls: Counter[str] = Counter()
        self.xids: SimpleQueue[tuple[int, int]] = SimpleQueue()
        """(NVML index, code) to come out of the next waits on an event set."""
        self.registered: set[str] = set()
        self.wait_error = SUCCESS
        self._anchors = [ctypes.c_char() for _ in range(64)]

    def load(self, soname: str) -> FakeDriver:
        """Stand in for ctypes.CDLL."""
        if not self.installed:
            raise OSError(f"{soname}: cannot open shared object file: No such file or directory")
        return self

    def __getattr__(self, symbol: str) -> Callable[..., int]:
        function: Callable[..., int] | None = _SYMBOLS.get(symbol)
        if function is None or symbol in self.missing:
            raise AttributeError(symbol)

        def call(*arguments: Any) -> int:
            self.calls[symbol] += 1
            return function(self, *arguments)

        return call

    def handle_of(self, nvml_index: int) -> ctypes.c_void_p:
        """Return an address that stands for a GPU."""
        return ctypes.cast(ctypes.pointer(self._anchors[nvml_index]), ctypes.c_void_p)

    def gpu_of(self, handle: object) -> DriverGpu:
        """Return the GPU behind a handle."""
        address = ctypes.cast(handle, ctypes.c_void_p).value  # type: ignore[arg-type]
        return next(gpu for index, gpu in enumerate(self.gpus) if self.handle_of(index).value == address)


def binding_to(driver: FakeDriver) -> ModuleType:
    """Return a private copy of the module pynvml whose library is ``driver``."""
    installed = importlib.util.find_spec("pynvml")
    assert installed is not None
    assert installed.origin is not None
    private = importlib.util.spec_from_file_location("pynvml_on_fake_driver", installed.origin)
    assert private is not None
    assert private.loader is not None
    binding = importlib.util.module_from_spec(private)
    sys.modules[private.name] = binding  # it looks itself up there to make its exception classes
    private.loader.exec_module(binding)
    vars(binding)["CDLL"] = driver.load
    return binding


def _init(driver: FakeDriver, _flags: int) -> int:
    return driver.init_error


def _shutdown(_driver: FakeDriver) -> int:
    return SUCCESS


def _driver_version(driver: FakeDriver, buffer: Any, _length: Any) -> int:
    buffer.value = driver.version.encode()
    return SUCCESS


def _count(driver: FakeDriver, count: Any) -> int:
    _target(count).value = len(driver.gpus)
    return driver.count_error


def _handle(driver: FakeDriver, index: Any, handle: Any) -> int:
    gpu: DriverGpu = driver.gpus[index.value]
    target = _target(handle)
    ctypes.memmove(
        ctypes.addressof(target), ctypes.byref(driver.handle_of(index.value)), ctypes.sizeof(ctypes.c_void_p)
    )
    return gpu.error


def _uuid(driver: FakeDriver, handle: object, buffer: Any, _length: Any) -> int:
    gpu = driver.gpu_of(handle)
    buffer.value = gpu.uuid.encode()
    return gpu.error


def _name(driver: FakeDriver, handle: object, buffer: Any, _length: Any) -> int:
    gpu = driver.gpu_of(handle)
    buffer.value = gpu.name.encode()
    return gpu.error


def _pci(driver: FakeDriver, handle: object, information: Any) -> int:
    gpu = driver.gpu_of(handle)
    _target(information).busId = gpu.bus_id.encode()
    return gpu.error


def _memory(driver: FakeDriver, handle: object, memory: Any) -> int:
    """Version 1 counts the reserved part as used (nvml-wrapper issue 57)."""
    gpu = driver.gpu_of(handle)
    if gpu.while_asked is not None:
        gpu.while_asked()
    target = _target(memory)
    target.total, target.free, target.used = gpu.total_bytes, gpu.free_bytes, gpu.total_bytes - gpu.free_bytes
    return gpu.error or gpu.memory_error


def _memory_v2(driver: FakeDriver, handle: object, memory: Any) -> int:
    gpu = driver.gpu_of(handle)
    _target(memory).reserved = gpu.reserved_bytes
    return _memory(driver, handle, memory)


def _processes(kind: str) -> Callable[..., int]:
    def fill(driver: FakeDriver, handle: object, count: Any, array: Any) -> int:
        gpu = driver.gpu_of(handle)
        listed: list[tuple[int, int | None]] = getattr(gpu, kind)
        if gpu.error or gpu.processes_error:
            return gpu.error or gpu.processes_error
        room = _target(count).value if array is not None else 0
        _target(count).value = len(listed)
        if room < len(listed):
            return 7
        for slot, (pid, used_bytes) in zip(array or (), listed, strict=False):
            slot.pid, slot.usedGpuMemory = pid, _NOT_AVAILABLE if used_bytes is None else used_bytes
        return SUCCESS

    return fill


def _utilization(driver: FakeDriver, handle: object, rates: Any) -> int:
    gpu = driver.gpu_of(handle)
    _target(rates).gpu = gpu.busy_percent or 0
    return gpu.error or gpu.vitals_error or _supported(gpu.busy_percent)


def _temperature(driver: FakeDriver, handle: object, _sensor: Any, degrees: Any) -> int:
    gpu = driver.gpu_of(handle)
    _target(degrees).value = gpu.temperature_c or 0
    return gpu.error or gpu.vitals_error or _supported(gpu.temperature_c)


def _throttles(driver: FakeDriver, handle: object, reasons: Any) -> int:
    gpu = driver.gpu_of(handle)
    _target(reasons).value = gpu.throttles or 0
    return gpu.error or gpu.vitals_error or _supported(gpu.throttles)


def _compute_mode(driver: FakeDriver, handle: object, mode: Any) -> int:
    gpu = driver.gpu_of(handle)
    _target(mode).value = gpu.compute_mode or 0
    return gpu.error or gpu.vitals_error or _supported(gpu.compute_mode)


def _mig_mode(driver: FakeDriver, handle: object, current: Any, pending: Any) -> int:
    gpu = driver.gpu_of(handle)
    _target(current).value = _target(pending).value = gpu.mig or 0
    return gpu.error or gpu.vitals_error or _supported(gpu.mig)


def _field_values(driver: FakeDriver, handle: object, _count: Any, values: Any) -> int:
    """One return code per field; row remapping and recovery action are unsigned int, the others long long."""
    gpu = driver.gpu_of(handle)
    for slot in _target(values):
        value = gpu.fields.get(slot.fieldId)
        slot.nvmlReturn = _supported(value)
        slot.valueType = 1 if slot.fieldId in (144, 145, 230) else 3
        slot.value.ullVal = value or 0
    return gpu.error


def _event_set_create(_driver: FakeDriver, events: Any) -> int:
    return SUCCESS if _target(events) is not None else 2


def _event_set_free(driver: FakeDriver, _events: object) -> int:
    driver.registered.clear()
    return SUCCESS


def _register_events(driver: FakeDriver, handle: object, types: Any, _events: object) -> int:
    gpu = driver.gpu_of(handle)
    if gpu.error or not types.value & _XID_EVENTS:
        return gpu.error or 2
    driver.registered.add(gpu.uuid)
    return SUCCESS


def _event_set_wait(driver: FakeDriver, _events: object, event: Any, timeout_ms: Any) -> int:
    """Block as the driver does, until an XID is put into the queue or the time is over."""
    if driver.wait_error:
        return driver.wait_error
    try:
        index, code = driver.xids.get(timeout=timeout_ms.value / 1000)
    except Empty:
        return _TIMEOUT
    target = _target(event)
    target.eventType, target.eventData = _XID_EVENTS, code
    ctypes.memmove(
        ctypes.addressof(target), ctypes.byref(driver.handle_of(index)), ctypes.sizeof(ctypes.c_void_p)
    )  # device is its first member
    return SUCCESS


def _supported(value: object) -> int:
    return _NOT_SUPPORTED if value is None else SUCCESS


def _target(reference: Any) -> Any:
    """Return what a byref() points at."""
    return reference._obj


_IDENTITY_AND_MEMORY: Final[dict[str, Callable[..., int]]] = {
    "nvmlInitWithFlags": _init,
    "nvmlShutdown": _shutdown,
    "nvmlSystemGetDriverVersion": _driver_version,
    "nvmlDeviceGetCount_v2": _count,
    "nvmlDeviceGetHandleByIndex_v2": _handle,
    "nvmlDeviceGetUUID": _uuid,
    "nvmlDeviceGetName": _name,
    "nvmlDeviceGetPciInfo_v3": _pci,
    "nvmlDeviceGetMemoryInfo": _memory,
    "nvmlDeviceGetMemoryInfo_v2": _memory_v2,
}
_PROCESS_LISTS: Final[dict[str, Callable[..., int]]] = {
    f"nvmlDeviceGet{symbol}RunningProcesses_v{version}": _processes(kind)
    for symbol, kind in (("Compute", "compute"), ("Graphics", "graphics"), ("MPSCompute", "mps"))
    for version in (2, 3)
}
_VITALS: Final[dict[str, Callable[..., int]]] = {
    "nvmlDeviceGetUtilizationRates": _utilization,
    "nvmlDeviceGetTemperature": _temperature,
    "nvmlDeviceGetCurrentClocksEventReasons": _throttles,
    "nvmlDeviceGetComputeMode": _compute_mode,
    "nvmlDeviceGetMigMode": _mig_mode,
    "nvmlDeviceGetFieldValues": _field_values,
}
_EVENTS: Final[dict[str, Callable[..., int]]] = {
    "nvmlEventSetCreate": _event_set_create,
    "nvmlEventSetFree": _event_set_free,
    "nvmlDeviceRegisterEvents": _register_events,
    "nvmlEventSetWait_v2": _event_set_wait,
}
_SYMBOLS: Final = _IDENTITY_AND_MEMORY | _PROCESS_LISTS | _VITALS | _EVENTS
