"""What the driver's modes make of a GPU: no worker may use it at all, or one process alone. Pure.

The operator sets them (nvidia-smi -c, -mig); gpuward reads them and never changes them.
"""

from __future__ import annotations

from gpuward.policy.gpus.inventory import Gpu, Snapshot

PROHIBITED = "prohibited"
ONE_PROCESS = frozenset({"exclusive-process", "exclusive-thread"})
"""Compute modes in which a second process on the GPU gets an error from CUDA (nvmlComputeMode_t of nvml.h).

A vLLM worker alone is well there: of its processes only one uses each GPU.
"""


def barred(gpu: Gpu) -> str:
    """Say why no worker can run on a GPU in its mode, and the way out; empty where one can."""
    if gpu.vitals.mig:
        return (
            f"GPU {gpu.index} is in MIG mode: CUDA sees only its instances, and gpuward places whole GPUs; "
            f"nvidia-smi -i {gpu.uuid} -mig 0 ends the mode"
        )
    if gpu.vitals.compute_mode == PROHIBITED:
        return (
            f"GPU {gpu.index} is in compute mode prohibited: CUDA refuses every process; "
            f"nvidia-smi -i {gpu.uuid} -c DEFAULT allows them"
        )
    return ""


def barred_gpus(snapshot: Snapshot) -> dict[str, str]:
    """Return a sentence for each GPU on which no worker can run, by UUID."""
    return {gpu.uuid: why for gpu in snapshot.gpus if (why := barred(gpu))}


def for_one_process(gpu: Gpu) -> bool:
    """Whether workers cannot share a GPU, whatever their claims are."""
    return gpu.vitals.compute_mode in ONE_PROCESS
