"""Ends of real workers that a simulated one only has to say: by name, in the words of vLLM 0.32.0 and its libraries.

What depends on memory, arguments or the model is not here: there the simulated worker meets the condition itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple


class Error(NamedTuple):
    """``process``: whose traceback ends with ``text``."""

    process: Literal["api", "engine"]
    text: str


ERRORS: Final[Mapping[str, Error]] = {
    "sampler-oom": Error(
        "engine",
        "RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy requests. Please try "
        "lowering `max_num_seqs` or `gpu_memory_utilization` when initializing the engine.",
    ),
    "ecc": Error("engine", "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered"),
    "nccl": Error(
        "engine",
        "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error (run with "
        "NCCL_DEBUG=INFO for details), NCCL version 2.28.9",
    ),
    "dist-port": Error(
        "engine",
        "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. "
        "port: 32847, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use",
    ),
    "side-channel": Error("engine", "zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:5600')"),
    "rpc-timeout": Error("engine", "TimeoutError: RPC call to sample_tokens timed out."),
    "offline": Error(
        "api",
        "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder for the "
        "specified revision on the local disk and outgoing traffic has been disabled.",
    ),
    "architecture": Error(
        "api",
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, Model architectures ['NewForCausalLM'] are not supported for now. [type=value_error]",
    ),
    "engine-timeout": Error(
        "api",
        "TimeoutError: Timed out waiting for engine core processes to start. This is often caused by slow weight "
        "loading for large models. To increase the timeout, set the environment variable: "
        "VLLM_ENGINE_READY_TIMEOUT_S=<seconds>.",
    ),
}
