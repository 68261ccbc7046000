"""What failures of a GPU and of its memory look like in a worker's output. Data only, in the order in which they win.

XIDs are not among them: the driver tells those, and in a worker's output they are anybody's words. Sources as in
`signatures`.
"""

from __future__ import annotations

from typing import Final

from gpuward.policy.diagnosis.causes import Cause, signature

_SIZE = r"[\d.]{1,10} [KMGT]iB"
_AGAIN = "a new process usually helps (#44734); the same on this GPU again points to hardware"
_LOADING = "more GPUs per worker, or a smaller or quantised model; while capturing graphs, lower gpu-memory-utilization"
_SERVING = "if it repeats, lower gpu-memory-utilization by 0.02 to 0.05, or max-num-seqs"
_ROOM = "raise gpu-memory-utilization (--kv-cache-memory-bytes instead, where that is set: it wins)"
_MORE_KV = f"{_ROOM}, or use a smaller or quantised model, or more GPUs per worker"
_HELD = "whoever holds the memory must release it; if nobody does, lower gpu-memory-utilization"

_HARDWARE: Final = (
    signature(
        Cause.GPU_HARDWARE,
        "uncorrectable",
        r"uncorrectable (?P<what>ECC|NVLink) error",
        "the GPU reports an uncorrectable {what} error",
        hint="it comes back with every restart: take the GPU out of service, reset it or reboot",
        permanent=True,
    ),
    signature(
        Cause.CUDA_FAULT,
        "CUDA error: ",
        r"CUDA error: (?P<what>device-side assert|an illegal \w{1,20}|misaligned address|unspecified launch failure"
        r"|invalid program counter|hardware stack error|the launch timed out)",
        "CUDA failed: {what}",
        hint=_AGAIN,
    ),
    signature(
        Cause.CUDA_FAULT,
        "Cuda failure",
        r"Cuda failure (?:\d{1,4} )?'(?P<what>(?!out of memory)[^']{1,120})'",
        "NCCL met a CUDA failure: {what}",
        hint=_AGAIN,
    ),
)

_MEMORY_AT_START: Final = (
    signature(
        Cause.PROFILING_RACE,
        "Error in memory profiling",
        r"Error in memory profiling",
        "another process released GPU memory while this one measured it",
        hint="not a lack of memory (#56830): start again when the neighbours on this GPU are quiet",
        phase="starting",
        following=1,
    ),
    signature(
        Cause.GPU_BUSY,
        "on startup is less than",
        r"\((?P<free>[\d.]{1,10})/(?P<total>[\d.]{1,10}) GiB\) on startup is less than desired "
        r"(?P<kind>\w{1,10}) memory utilization \((?P<ratio>[\d.]{1,10}), (?P<need>[\d.]{1,10}) GiB\)",
        "{free} of {total} GiB were free at the start, gpu-memory-utilization {ratio} needs {need} GiB",
        hint=_HELD,
        phase="starting",
    ),
    signature(
        Cause.GPU_BUSY,
        "less than",
        r"on startup is less than desired|less than the engine's budget",
        "less GPU memory was free at the start than gpu-memory-utilization asks for",
        hint=_HELD,
        phase="starting",
    ),
    signature(
        Cause.GPU_BUSY,
        "busy or unavailable",
        r"devices?(?:\(s\) is/are| are)? busy or unavailable",
        "CUDA says that the device is busy or unavailable: another process has it in exclusive mode",
        hint="end the other process, or set the compute mode to default",
        phase="starting",
    ),
    signature(
        Cause.KV_CACHE_TOO_SMALL,
        "on kv cache allocation is less than",
        r"on kv cache allocation is less than requested memory for kv "
        r"\((?P<room>-?[\d.]{1,10})/(?P<total>[\d.]{1,10}) GiB\)",
        "nothing is left for the KV cache: {room} of {total} GiB after weights and activations",
        hint=_MORE_KV,
        permanent=True,
        phase="starting",
    ),
    signature(
        Cause.KV_CACHE_TOO_SMALL,
        "No available memory for the cache blocks",
        r"No available memory for the cache blocks",
        "no GPU memory is left for the KV cache after weights and activations",
        hint=f"{_MORE_KV}; if another worker started on this GPU at the same time (#55827), start it alone",
        permanent=True,
        phase="starting",
    ),
    signature(
        Cause.KV_CACHE_TOO_SMALL,
        "KV cache",
        r"max seq len \((?P<wanted>\d{1,12})\).{0,400}(?:estimated maximum model length is"
        r"|maximum number of tokens that can be stored in KV cache) \(?(?P<offer>\d{1,12})",
        "the KV cache holds {offer} tokens, one request may have {wanted}",
        hint=f"set max-model-len to {{offer}} or less, or {_ROOM}",
        permanent=True,
        phase="starting",
    ),
    signature(
        Cause.KV_CACHE_TOO_SMALL,
        "arger than the ",
        r"larger than the (?:available KV cache memory|maximum number of tokens that can be stored in KV cache)",
        "the KV cache is too small for one request of full length",
        hint=f"lower max-model-len, or {_ROOM}",
        permanent=True,
        phase="starting",
    ),
)

_OUT_OF_MEMORY = (
    rf"(?:CUDA|HIP) out of memory\. Tried to allocate (?P<ask>{_SIZE})\."
    rf" GPU \d{{1,4}} has a total capacity of (?P<total>{_SIZE}) of which (?P<free>{_SIZE}) is free"
)
_OUT_OF_MEMORY_BARE = r"(?:CUDA|HIP) out of memory|CUDA error: out of memory|Cuda failure (?:\d{1,4} )?'out of memory'"

_GPU_MEMORY: Final = (
    signature(
        Cause.GPU_OOM_STARTUP,
        "out of memory occurred",
        r"out of memory occurred when warming up sampler",
        "the GPU ran out of memory while the sampler was warmed up",
        hint="lower max-num-seqs or gpu-memory-utilization",
        permanent=True,
        phase="starting",
    ),
    signature(
        Cause.GPU_OOM_STARTUP,
        "out of memory. Tried",
        _OUT_OF_MEMORY + rf".{{0,200}}?\bProcess (?P<pid>\d{{1,10}}) has (?P<held>{_SIZE}) memory in use",
        "the GPU ran out of memory while loading: {ask} asked, {free} of {total} free, process {pid} holds {held}",
        hint="end process {pid}, or place the worker elsewhere",
        phase="starting",
    ),
    signature(
        Cause.GPU_OOM_STARTUP,
        "out of memory. Tried",
        _OUT_OF_MEMORY,
        "the GPU ran out of memory while loading: {ask} asked, {free} of {total} free",
        hint=_LOADING,
        permanent=True,
        phase="starting",
    ),
    signature(
        Cause.GPU_OOM_RUNTIME,
        "out of memory. Tried",
        _OUT_OF_MEMORY,
        "the GPU ran out of memory while serving: {ask} asked, {free} of {total} free",
        hint=_SERVING,
        phase="ready",
    ),
    *(
        each
        for literal, pattern in (("out of memory", _OUT_OF_MEMORY_BARE), ("CUBLAS_STATUS_ALLOC_FAILED",) * 2)
        for each in (
            signature(
                Cause.GPU_OOM_STARTUP,
                literal,
                pattern,
                "the GPU ran out of memory while loading",
                hint=_LOADING,
                permanent=True,
                phase="starting",
            ),
            signature(
                Cause.GPU_OOM_RUNTIME,
                literal,
                pattern,
                "the GPU ran out of memory while serving",
                hint=_SERVING,
                phase="ready",
            ),
        )
    ),
    # behind the memory signatures: both are also the echo of an allocation that failed
    signature(
        Cause.CUDA_FAULT,
        "CUBLAS_STATUS_",
        r"CUBLAS_STATUS_(?P<what>\w{1,40})",
        "cuBLAS failed: {what}",
        hint=_AGAIN,
    ),
    signature(
        Cause.CUDA_FAULT,
        "unhandled cuda error",
        r"unhandled cuda error",
        "NCCL met an unhandled CUDA error",
        hint=_AGAIN,
    ),
)

GPU_SIGNATURES: Final = (*_HARDWARE, *_MEMORY_AT_START, *_GPU_MEMORY)
"""In the order in which they win."""
