"""The engine process of a simulated worker: loads, holds memory through its ranks, generates tokens, fails on command.

It watches nobody: like vLLM's it outlives its API server (vLLM issue 55510).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from gpuward.sim.vllm.arguments import ServeArguments
from gpuward.sim.vllm.batch import Batch
from gpuward.sim.vllm.console import VERSION, Console, traceback
from gpuward.sim.vllm.devices import GIB, CudaOutOfMemory, Device, MemoryRefused, RankMemory
from gpuward.sim.vllm.errors import ERRORS
from gpuward.sim.vllm.faults import Fault, parse_faults
from gpuward.sim.vllm.loop import Channel, Loop
from gpuward.sim.vllm.ranks import Rank, RankDied, RankProcess, fork_ranks, rank_names
from gpuward.sim.vllm.settings import Settings
from gpuward.sim.vllm.title import set_title

KV_BYTES_PER_TOKEN: Final = 131072
"""Of an 8 B Llama in 16 bit: 2 x 32 layers x 8 heads x 128 x 2 bytes."""

_CONTEXT_BYTES: Final = GIB // 2
_WEIGHT_BYTES: Final = GIB
_LEAK_STEP_S: Final = 0.25
_OOM_BYTES: Final = 896 * 1024**2


class KvCacheRefused(Exception):
    """Too little is left for the KV cache; the text is vLLM's."""


class CudaFault(Exception):
    """The program went wrong on the GPU; the text is PyTorch's."""


class ProfilingDisturbed(Exception):
    """Memory was given back by somebody else while the engine measured its own; the text is vLLM's."""


class Told(Exception):
    """An error that was asked for by name; the text is of the one who says it in a real worker."""


StartFailure = (MemoryRefused, CudaOutOfMemory, KvCacheRefused, RankDied, CudaFault, ProfilingDisturbed, Told)


class EngineJob(NamedTuple):
    """What the engine has to do. ``devices``: one per rank; ``max_model_len`` in tokens."""

    arguments: ServeArguments
    settings: Settings
    devices: tuple[Device, ...]
    max_model_len: int


class Engine:
    """Runs in a fork of the API server; ``api`` is its only tie to it."""

    def __init__(self, job: EngineJob, api: Channel) -> None:
        set_title("VLLM::EngineCore")
        signal.alarm(job.settings.life_s)
        self._job = job
        self._api = api
        self._console = Console("EngineCore")
        self._loop = Loop()
        self._batch = Batch(self._loop, api, job.settings.token_s, job.arguments.max_num_seqs)
        names = [
            rank_names(rank, job.arguments.tensor_parallel_size, job.arguments.world_size)
            for rank in range(job.arguments.world_size)
        ]
        self._memories = [
            RankMemory(device, rank, job.settings.claims_dir, job.settings.lag_s)
            for rank, device in enumerate(job.devices[: len(names)])
        ]
        self._ranks: Sequence[Rank] = self._memories
        self._children: list[RankProcess] = []
        if len(names) > 1:
            self._children = fork_ranks(self._memories, names, api.close, job.settings.life_s)
            self._ranks = self._children

    @property
    def _budget_bytes(self) -> int:
        """Per rank; the smallest, as vLLM's cache has one size for all ranks."""
        return min(memory.requested_bytes(self._job.arguments.gpu_memory_utilization) for memory in self._memories)

    def run(self) -> int:
        """Load, serve until told to end; return the exit code."""
        try:
            kv_tokens = self._load()
        except StartFailure as error:
            self._report_death(error, "EngineCore failed to start.", "core.py:1510", "EngineCoreProc(*args, **kwargs)")
            return 1
        self._api.send("ready", kv_tokens)
        self._loop.watch(self._api.socket, self._on_message)
        for child in self._children:
            self._loop.watch(child.channel.socket, lambda child=child: self._on_rank_gone(child))  # type: ignore[misc]
        for fault in self._job.settings.faults:
            if fault.phase == "run":
                self._loop.call_later(fault.delay_s, lambda fault=fault: self._fail(fault))  # type: ignore[misc]
        try:
            self._loop.run()
        except (CudaOutOfMemory, CudaFault, RankDied, Told) as error:
            self._report_death(
                error, "EngineCore encountered a fatal error.", "core.py:1512", "engine_core.run_busy_loop()"
            )
        return 1

    def _load(self) -> int:
        """Take the memory in vLLM's order, with its log lines; return how many tokens the KV cache holds."""
        arguments, say = self._job.arguments, self._console.info
        pause_s = 0.9 * self._job.settings.start_s / 4
        say("core.py:109", f"Initializing a V1 LLM engine (v{VERSION}) with config: model={arguments.model!r}")
        time.sleep(pause_s)
        self._fail_at_start()
        before_bytes = self._left_by_others_bytes()
        for rank in self._ranks:
            rank.check(arguments.gpu_memory_utilization)
        self._hold(_CONTEXT_BYTES)
        say("gpu_model_runner.py:4812", f"Starting to load model {arguments.model}...")
        time.sleep(pause_s)
        self._hold(min(self._budget_bytes, _CONTEXT_BYTES + _WEIGHT_BYTES))
        say("default_loader.py:384", f"Loading weights took {pause_s:.2f} seconds")
        time.sleep(pause_s)
        kv_tokens = self._kv_tokens(self._charged_bytes(before_bytes))
        self._hold(self._budget_bytes)
        overshoot_bytes = self._capture_graphs()
        say("kv_cache_utils.py:1702", f"GPU KV cache size: {kv_tokens:,} tokens")
        time.sleep(pause_s)
        say(
            "gpu_model_runner.py:5906",
            f"Graph capturing finished in {pause_s:.0f} secs, took {overshoot_bytes / GIB:.2f} GiB",
        )
        say("core.py:402", f"init engine (profile, create kv cache, warmup model) took {2 * pause_s:.2f} s")
        return kv_tokens

    def _hold(self, wanted_bytes: int) -> None:
        limit = self._job.settings.fault("oom-at", "run")
        if limit is not None and wanted_bytes > limit.value:
            raise CudaOutOfMemory(self._memories[0].out_of_memory(wanted_bytes - limit.value))
        for rank in self._ranks:
            rank.hold(wanted_bytes)

    def _left_by_others_bytes(self) -> int:
        """What neighbours leave of the GPU of the only rank; for several ranks, each other's neighbours, 0."""
        return 0 if self._children else self._memories[0].left_by_others_bytes()

    def _charged_bytes(self, before_bytes: int) -> int:
        """What neighbours took since ``before_bytes`` were left, which vLLM charges to itself (vLLM issue 55827).

        It reads the whole device before and after. Raises ProfilingDisturbed where they gave something back.
        """
        now_bytes = self._left_by_others_bytes()
        if now_bytes > before_bytes:
            raise ProfilingDisturbed(
                f"AssertionError: Error in memory profiling. Initial free memory {before_bytes / GIB:.2f} GiB, current "
                f"free memory {now_bytes / GIB:.2f} GiB. This happens when other processes sharing the same container "
                "release GPU memory while vLLM is profiling during initialization."
            )
        return before_bytes - now_bytes

    def _capture_graphs(self) -> int:
        """The last step of a start, and the first that takes memory beyond the budget; return how much it took."""
        for fault in self._job.settings.faults:
            if fault.phase == "start" and fault.kind in ("oom", "oom-above"):
                time.sleep(fault.delay_s)
                self._fail(fault)
        overshoot = self._job.settings.fault("overshoot", "run")
        if overshoot is None:
            return 0
        self._hold(self._budget_bytes + overshoot.value)
        return overshoot.value

    def _kv_tokens(self, charged_bytes: int) -> int:
        """Raises KvCacheRefused in the words of vLLM v1/core/kv_cache_utils.py."""
        available_bytes = self._budget_bytes - _CONTEXT_BYTES - _WEIGHT_BYTES - charged_bytes
        if available_bytes <= 0:
            raise KvCacheRefused(
                "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
                "initializing the engine."
            )
        per_token_bytes = KV_BYTES_PER_TOKEN // self._job.arguments.world_size
        kv_tokens, wanted = available_bytes // per_token_bytes, self._job.max_model_len
        if kv_tokens < wanted:
            raise KvCacheRefused(
                f"ValueError: To serve at least one request with the model's max seq len ({wanted}), "
                f"({wanted * per_token_bytes / GIB:.2f} GiB KV cache is needed, which is larger than the available KV "
                f"cache memory ({available_bytes / GIB:.2f} GiB). Based on the available memory, the estimated maximum "
                f"model length is {kv_tokens}. Try increasing `gpu_memory_utilization` or decreasing `max_model_len` "
                "when initializing the engine."
            )
        return kv_tokens

    def _fail_at_start(self) -> None:
        for fault in self._job.settings.faults:
            if fault.phase == "start" and fault.kind in ("engine-killed", "hang", "cuda-fault", "error"):
                time.sleep(fault.delay_s)
                self._fail(fault)

    def _fail(self, fault: Fault) -> None:
        match fault.kind:
            case "oom":
                raise CudaOutOfMemory(self._memories[0].out_of_memory(_OOM_BYTES))
            case "oom-above" if self._job.arguments.gpu_memory_utilization * 1000 > fault.value:
                raise CudaOutOfMemory(self._memories[0].out_of_memory(_OOM_BYTES))
            case "cuda-fault":
                raise CudaFault("torch.AcceleratorError: CUDA error: an illegal memory access was encountered")
            case "engine-killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                while True:
                    signal.pause()
            case "error" if ERRORS[fault.name].process == "engine":
                raise Told(ERRORS[fault.name].text)
            case "leak":
                self._leak(fault.value, self._budget_bytes)

    def _leak(self, bytes_per_s: int, held_bytes: int) -> None:
        def grow() -> None:
            grown_bytes = held_bytes + int(bytes_per_s * _LEAK_STEP_S)
            self._hold(grown_bytes)
            self._leak(bytes_per_s, grown_bytes)

        self._loop.call_later(_LEAK_STEP_S, grow)

    def _on_message(self) -> None:
        match self._api.receive():
            case None:
                self._loop.unwatch(self._api.socket)
                self._batch.clear()
            case ["submit", int(), int()] if self._job.settings.fault("first-request", "run"):
                raise Told("RuntimeError: This kernel supports head_dim 32 to 256, but got head_dim=16")
            case ["submit", int(request), int(tokens)]:
                self._batch.add(request, tokens)
            case ["abort", int(request)]:
                self._batch.drop(request)
            case ["fault", str(text)]:
                for fault in parse_faults(text):
                    self._loop.call_later(fault.delay_s, lambda fault=fault: self._fail(fault))  # type: ignore[misc]
            case message:
                raise AssertionError(message)

    def _on_rank_gone(self, child: RankProcess) -> None:
        """A rank never speaks unasked: its channel turned readable because it died."""
        os.waitpid(child.pid, 0)
        raise RankDied(child.name)

    def _report_death(self, error: Exception, what: str, where: str, code: str) -> None:
        text = str(error)
        if isinstance(error, RankDied):
            self._console.error(
                "multiproc_executor.py:315",
                [f"Worker proc {error} died unexpectedly (exit code: None), shutting down executor."],
            )
            text = "RuntimeError: Executor failed."
        self._console.error(where, [what, *traceback("v1/engine/core.py", 1482, "run_engine_core", code, text)])
        self._console.plain(
            ["Process EngineCore:", *traceback("v1/engine/core.py", 1514, "run_engine_core", "raise e", text)]
        )
