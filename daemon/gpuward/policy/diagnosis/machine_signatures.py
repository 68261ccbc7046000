"""What a start says for which the machine lacks something: driver, libraries, disk, memory, network. Data only.

What stays as it is until somebody changes the machine is permanent; what may be back in a minute is not. Texts are
those of CUDA, glibc, torch, NCCL, huggingface_hub and Dynamo.
"""

from __future__ import annotations

from typing import Final

from gpuward.policy.diagnosis.causes import Cause, Signature, signature

_TOGETHER = (
    "install vLLM, torch and their extensions in versions that belong together, in the environment of 'executable'"
)
_SHM_FULL = "the shared memory of /dev/shm is too small"
_SHM = "give /dev/shm more room (docker: --shm-size or --ipc=host; else mount it with a larger size=)"
LESS_HOST_MEMORY: Final = (
    "give the worker less host memory to use: cpu-offload-gb, kv-offloading-size, VLLM_CPU_KVCACHE_SPACE; or raise "
    "memory-max"
)


def _lacks(literal: str, pattern: str, says: str, hint: str) -> Signature:
    return signature(Cause.CONFIG_ERROR, literal, pattern, says, hint=hint, permanent=True, phase="starting")


DRIVER_SIGNATURES: Final = (
    _lacks(
        "driver version is insufficient",
        r"CUDA driver version is insufficient for CUDA runtime version",
        "the NVIDIA driver is too old for the CUDA of this build",
        "update the driver, or install a build for an older CUDA",
    ),
    _lacks(
        "driver on your system is too old",
        r"driver on your system is too old \(found version (?P<found>[\d.]{1,12})\)",
        "the NVIDIA driver is too old for this build: it knows CUDA {found}",
        "update the driver, or install a build for an older CUDA",
    ),
    _lacks(
        "version mismatch",
        r"Driver/library version mismatch",
        "the NVIDIA driver was updated while its old kernel module is still loaded",
        "reboot the host, or reload the nvidia kernel modules",
    ),
    _lacks(
        "no NVIDIA driver",
        r"[Ff]ound no NVIDIA driver",
        "the worker finds no NVIDIA driver",
        "install the driver; in a container pass the GPUs through (--gpus, or CDI)",
    ),
    _lacks(
        "CUDA",
        r"No CUDA GPUs are available|no CUDA-capable device is detected",
        "the worker sees no CUDA device",
        "run nvidia-smi as the daemon's user; check the driver, the device nodes and CUDA_VISIBLE_DEVICES in 'env'",
    ),
    _lacks(
        "libcuda.so",
        r"(?P<what>libcuda\.so[\w.]{0,20}): cannot open shared object file",
        "{what} is missing: it comes with the NVIDIA driver",
        "install the driver; in a container pass the GPUs through (--gpus, or CDI)",
    ),
    _lacks(
        "cannot open shared object file",
        r"Error: (?P<what>[\w.+-]{1,80}\.so[\w.]{0,20}): cannot open shared object file",
        "the library {what} is missing",
        "install it in the environment of 'executable', or name its directory in LD_LIBRARY_PATH in 'env'",
    ),
    _lacks(
        "not found",
        r"version [`'](?P<what>(?:GLIBC|GLIBCXX|CXXABI)_[\d.]{1,12})' not found",
        "this host's system libraries are older than the build needs: {what}",
        "install a build for this system, or run it in a container",
    ),
    _lacks(
        "undefined symbol",
        r"(?:^|[\s/])(?P<what>[\w.+-]{1,100}): undefined symbol",
        "{what} was built for another version of torch or CUDA",
        _TOGETHER,
    ),
    _lacks(
        "no kernel image",
        r"no kernel image is available",
        "this build has no code for this GPU's architecture",
        "install a build for it, or use other GPUs",
    ),
    _lacks(
        "not compiled with CUDA",
        r"Torch not compiled with CUDA enabled",
        "torch is installed without CUDA",
        _TOGETHER,
    ),
    _lacks(
        "re-initialize CUDA",
        r"Cannot re-initialize CUDA in forked subprocess",
        "CUDA was used before the worker's processes were forked",
        "set VLLM_WORKER_MULTIPROC_METHOD = \"spawn\" in 'env'",
    ),
)
"""Before those of the GPU: NCCL and torch wrap them in errors of CUDA."""

MACHINE_SIGNATURES: Final = (
    _lacks(
        "shared memory segment",
        r"creating shared memory segment (?P<what>/dev/shm/\S{1,80}).{0,60}No space left",
        _SHM_FULL,
        _SHM,
    ),
    _lacks("insufficient shared memory", r"insufficient shared memory", _SHM_FULL, _SHM),
    _lacks(
        "us error",
        r"(?:^|\s)Bus error\b",
        "a bus error: memory that a file backs is gone, as when /dev/shm is full or a file of the model was cut short",
        f"{_SHM}; if it has room, download the model again",
    ),
    _lacks(
        "o space left on device",
        r"No space left on device(?:: '(?P<path>[^']{1,200})')?",
        "a disk is full",
        "make room, as a rule where HF_HOME, VLLM_CACHE_ROOT or TMPDIR are",
    ),
    _lacks(
        "quota exceeded",
        r"Disk quota exceeded",
        "a disk quota is used up",
        "make room, as a rule where HF_HOME, VLLM_CACHE_ROOT or TMPDIR are",
    ),
    signature(
        Cause.HOST_OOM,
        "DefaultCPUAllocator",
        r"DefaultCPUAllocator: (?:can't allocate|not enough) memory: you tried to allocate (?P<ask>\d{1,20}) bytes",
        "the host had no {ask} bytes of memory to give",
        hint=LESS_HOST_MEMORY,
    ),
    signature(
        Cause.HOST_OOM,
        "[Errno 12]",
        r"OSError: \[Errno 12\] Cannot allocate memory",
        "the host had no memory to give",
        hint=LESS_HOST_MEMORY,
    ),
    signature(
        Cause.START_TIMEOUT,
        "waiting for clients",
        r"Timed out after (?P<after>\d{1,6}) seconds waiting for clients\. (?P<joined>\d{1,5}/\d{1,5}) clients joined",
        "only {joined} of its processes had found each other after {after} s",
        hint="look at the first error of the process that did not come; over several hosts, at their network",
        phase="starting",
    ),
    signature(
        Cause.CRASH,
        "etcd",
        r"[Ff]ailed to connect to etcd|Check etcd server status",
        "etcd does not answer",
        hint="start etcd, or correct ETCD_ENDPOINTS in 'env'",
        phase="starting",
    ),
    _lacks(
        "LocalEntryNotFoundError: ",
        r"LocalEntryNotFoundError: .{0,400}(?:outgoing traffic|HF_HUB_OFFLINE)",
        "the model is not in the local cache, and downloads are off",
        "download the model first, or set 'model' to a directory; or take HF_HUB_OFFLINE out of 'env'",
    ),
    signature(
        Cause.CRASH,
        "LocalEntryNotFoundError: ",
        r"LocalEntryNotFoundError: ",
        "the model is not in the local cache, and its repository cannot be reached",
        hint="see to the network (proxy, DNS); or download the model first and set 'model' to a directory",
        phase="starting",
    ),
    signature(
        Cause.CRASH,
        "We couldn't connect to",
        r"We couldn't connect to 'http.{0,400}connection",
        "the model is not in the local cache, and its repository cannot be reached",
        hint="see to the network (proxy, DNS); or download the model first and set 'model' to a directory",
        phase="starting",
    ),
    signature(
        Cause.CRASH,
        "name resolution",
        r"Temporary failure in name resolution",
        "a name on the network cannot be resolved",
        hint="see to the network (DNS)",
        phase="starting",
    ),
)
"""In the order in which they win."""
