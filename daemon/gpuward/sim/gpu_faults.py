"""Faults of simulated GPUs, on demand: what they change in a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from gpuward.policy.gpus.inventory import UNKNOWN_VITALS, Gpu

_SLOWS_DOWN_C: Final = 90
"""From about this temperature an H100 holds its clocks down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What is wrong, by GPU index; a leak is (bytes per second, monotonic start)."""

    lost: frozenset[int] = frozenset()
    hangs_until_s: float = 0.0
    held: Mapping[int, int] = field(default_factory=dict)
    leaks: Mapping[int, tuple[int, float]] = field(default_factory=dict)
    temperatures: Mapping[int, int] = field(default_factory=dict)
    compute_modes: Mapping[int, str] = field(default_factory=dict)
    mig: frozenset[int] = frozenset()


def with_faults(gpu: Gpu, faults: Faults, now_s: float) -> Gpu:
    """Return the GPU as these faults make it look."""
    if gpu.index in faults.lost:
        return replace(
            gpu,
            reserved_bytes=None,
            used_bytes=None,
            free_bytes=None,
            processes=(),
            health="lost",
            reason="the GPU has fallen off the bus (simulated)",
            vitals=UNKNOWN_VITALS,
        )
    mode = faults.compute_modes.get(gpu.index, gpu.vitals.compute_mode)
    gpu = replace(gpu, vitals=replace(gpu.vitals, compute_mode=mode, mig=gpu.index in faults.mig))
    if gpu.index in faults.temperatures:
        degrees_c = faults.temperatures[gpu.index]
        throttled_by = ("hardware thermal slowdown",) if degrees_c >= _SLOWS_DOWN_C else ()
        gpu = replace(gpu, vitals=replace(gpu.vitals, temperature_c=degrees_c, throttled_by=throttled_by))
    if gpu.index in faults.leaks:
        bytes_per_s, since_s = faults.leaks[gpu.index]
        gpu = _leaking(gpu, int(bytes_per_s * (now_s - since_s)))
    return gpu


def _leaking(gpu: Gpu, leaked_bytes: int) -> Gpu:
    """Let the largest process have more, as far as there is memory."""
    if not gpu.processes or gpu.free_bytes is None or gpu.used_bytes is None:
        return gpu
    leaked_bytes = min(max(0, leaked_bytes), gpu.free_bytes)
    largest = max(gpu.processes, key=lambda process: process.used_bytes or 0)
    grown = replace(largest, used_bytes=(largest.used_bytes or 0) + leaked_bytes)
    return replace(
        gpu,
        used_bytes=gpu.used_bytes + leaked_bytes,
        free_bytes=gpu.free_bytes - leaked_bytes,
        processes=tuple(grown if process is largest else process for process in gpu.processes),
    )
