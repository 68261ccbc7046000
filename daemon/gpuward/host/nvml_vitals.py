"""How a GPU does, asked of NVML in six calls; what a driver or a product does not tell is None. Blocks as NVML does."""

from __future__ import annotations

from typing import Any, Final

from gpuward.host.nvml import GPU_IS_LOST, RESET_REQUIRED, Nvml, NvmlTrouble
from gpuward.policy.gpus.inventory import Vitals

_TEMPERATURE_OF_GPU: Final = 0
"""NVML_TEMPERATURE_GPU of nvml.h."""

_ECC_UNCORRECTED: Final = 4
_ROWS_PENDING: Final = 144
_ROWS_FAILED: Final = 145
_POWER_NOW: Final = 186
_RECOVERY_ACTION: Final = 230
_FIELDS: Final = (_ECC_UNCORRECTED, _ROWS_PENDING, _ROWS_FAILED, _POWER_NOW, _RECOVERY_ACTION)
"""NVML_FI_DEV_* of nvml.h: errors since the driver's load, row remapping, milliwatts, recovery action; one call."""

_UNION_MEMBERS: Final = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""Members of nvmlValue_t, in the order of nvmlValueType_t."""

_THROTTLES: Final = {
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Bits of nvmlClocksEventReasons that tell of trouble; the others (idle, power cap, settings) are normal."""

_RECOVERIES: Final = {
    0: "",
    1: "reset the GPU",
    2: "reboot the host",
    3: "drain its peer-to-peer traffic",
    4: "drain and reset the GPU",
    5: "recover the IMEX domain",
    6: "reset its bus",
    7: "reboot the system",
}
"""nvmlDeviceGpuRecoveryAction_t of nvml.h."""

COMPUTE_MODES: Final = {0: "default", 1: "exclusive-thread", 2: "prohibited", 3: "exclusive-process"}


def read_vitals(nvml: Nvml, handle: object) -> Vitals:
    """Return what the driver tells of this GPU. Raises NvmlTrouble where the GPU is lost, and only then."""
    busy = _told(nvml, "nvmlDeviceGetUtilizationRates", handle)
    throttles = _told(nvml, "nvmlDeviceGetCurrentClocksEventReasons", handle)
    mode = _told(nvml, "nvmlDeviceGetComputeMode", handle)
    mig = _told(nvml, "nvmlDeviceGetMigMode", handle)
    fields = _fields(nvml, handle)
    power_mw = fields.get(_POWER_NOW)
    return Vitals(
        busy_percent=None if busy is None else int(busy.gpu),
        temperature_c=_told(nvml, "nvmlDeviceGetTemperature", handle, _TEMPERATURE_OF_GPU),
        power_w=None if power_mw is None else power_mw / 1000,
        throttled_by=None if throttles is None else tuple(word for bit, word in _THROTTLES.items() if throttles & bit),
        ecc_uncorrected=fields.get(_ECC_UNCORRECTED),
        rows_pending=_flag(fields.get(_ROWS_PENDING)),
        rows_failed=_flag(fields.get(_ROWS_FAILED)),
        recovery=_recovery(fields.get(_RECOVERY_ACTION)),
        compute_mode=None if mode is None else COMPUTE_MODES.get(mode, f"mode {mode}"),
        mig=None if mig is None else bool(mig[0]),
    )


def _told(nvml: Nvml, name: str, handle: object, *arguments: object) -> Any:  # noqa: ANN401  the binding has no types
    """Return the answer, None where there is none; only a lost GPU is trouble."""
    try:
        return nvml.call(name, handle, *arguments)
    except NvmlTrouble as trouble:
        if trouble.code in (GPU_IS_LOST, RESET_REQUIRED):
            raise
        return None


def _fields(nvml: Nvml, handle: object) -> dict[int, int]:
    values = _told(nvml, "nvmlDeviceGetFieldValues", handle, _FIELDS) or ()
    return {value.fieldId: int(_member(value)) for value in values if value.nvmlReturn == 0}


def _member(value: Any) -> float:  # noqa: ANN401
    number: float = getattr(value.value, _UNION_MEMBERS[value.valueType])
    return number


def _flag(number: int | None) -> bool | None:
    return None if number is None else bool(number)


def _recovery(action: int | None) -> str | None:
    return None if action is None else _RECOVERIES.get(action, f"take recovery action {action}")
