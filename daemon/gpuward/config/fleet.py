"""The fleet: which pools run. Frozen records; keys in files are the field names with hyphens.

Nothing here reads a file or checks a range; `decode` does.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from gpuward.config.vllm_arguments import data_parallel_engines

Engine = Literal["vllm", "command", "simulated"]

OnBreach = Literal["warn", "drain", "restart"]

DEFAULT_GPU_MEMORY_UTILIZATION = 0.9
"""Share of a GPU's total memory that a worker claims when its pool names none."""


class RestartPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """What follows when a worker's run ends unasked; times in seconds.

    More than ``max_failures`` failures within ``window_s`` and the worker is given up on (phase failed).
    """

    mode: Literal["always", "never"] = "always"
    max_failures: int = 5
    window_s: float = 600.0
    delay_first_s: float = 2.0
    delay_max_s: float = 120.0
    reset_after_s: float = 600.0


Treatment = Literal["auto", "fail", "wait", "restart", "move"]
"""What follows from a cause; auto: fail where the evidence says that a new start ends the same way, else restart."""


class OnCause(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """What follows when a run ends unasked, by cause.

    ``fail``: no further start. ``wait``: start again when the condition holds, outside the restart budget.
    ``restart``: backoff and budget. ``move``: restart once, the next time on other GPUs, fail where none is free.
    """

    gpu_oom_startup: Treatment = "auto"
    gpu_oom_runtime: Treatment = "restart"
    kv_cache_too_small: Treatment = "auto"
    gpu_busy: Treatment = "wait"
    profiling_race: Treatment = "wait"
    host_oom: Treatment = "restart"
    cuda_fault: Treatment = "move"
    gpu_hardware: Treatment = "fail"
    port_conflict: Treatment = "auto"
    config_error: Treatment = "fail"
    hang: Treatment = "restart"
    start_timeout: Treatment = "restart"
    crash: Treatment = "auto"


class Liveness(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """Whether a ready worker is asked if it still makes progress; times in seconds.

    ``probe`` auto: on for the engines vllm and simulated. It is a hang when ``misses`` looks in a row, one every
    ``interval_s``, saw requests and no progress, or (``canary``) one token asked of an idle engine did not come within
    ``interval_s``.
    """

    probe: Literal["auto", "on", "off"] = "auto"
    interval_s: float = 10.0
    misses: int = 3
    canary: bool = True


class Pool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab", omit_defaults=True):
    """A named set of identical workers.

    ``gpus_per_worker`` is per worker, never the pool's total; ``None`` means as many as the parallel sizes ask for.
    ``gpus`` holds PCI-order indices or UUIDs, ``first_gpu`` an index (the offset of old Dynamo files).
    ``model`` is what the engine gets: a path already made absolute, or a name to be looked up by the engine.
    ``memory_max`` is of host memory, for each worker's whole process tree, in bytes (files may say "40GiB").
    """

    name: str
    engine: Engine = "vllm"
    model: str | None = None
    workers: int = 1
    gpus_per_worker: int | None = None
    gpu_memory_utilization: float = DEFAULT_GPU_MEMORY_UTILIZATION
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    allow_idle_gpus: bool = False
    max_model_len: int | None = None
    gpus: tuple[int | str, ...] = ()
    first_gpu: int | None = None
    share: bool = False
    pin: Literal["index", "uuid"] = "index"
    port: int | None = None
    env: dict[str, str] = field(default_factory=dict)
    extra_args: tuple[str, ...] = ()
    executable: str | None = None
    working_directory: str | None = None
    memory_max: int | None = None
    start_timeout_s: float = 1800.0
    stop_timeout_s: float | None = None
    drain_timeout_s: int | None = None
    update: Literal["rolling", "all"] = "rolling"
    max_unavailable: int = 1
    min_ready_s: float = 2.0
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    on_cause: OnCause = field(default_factory=OnCause)
    on_oom: Literal["hold", "restart", "adapt"] = "restart"
    min_max_model_len: int | None = None
    liveness: Liveness = field(default_factory=Liveness)
    max_parallel_starts: int | None = None
    on_breach: OnBreach = "warn"
    spare: bool = False
    depends_on: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    ready_url: str | None = None
    ready_log: str | None = None
    ready_after_s: float | None = None

    @property
    def data_parallel_size(self) -> int:
        """Engines side by side in one worker, each with its own GPUs; vLLM's ``--data-parallel-size``."""
        return 1 if self.engine == "command" or not self.extra_args else data_parallel_engines(self.extra_args)

    @property
    def tensor_size(self) -> int:
        """GPUs over which one layer is spread: as many as there are for it where the pool does not say."""
        if self.tensor_parallel_size is not None:
            return self.tensor_parallel_size
        others = (self.pipeline_parallel_size or 1) * self.data_parallel_size
        return max(1, (self.gpus_per_worker or 1) // others)

    @property
    def parallel_size(self) -> int:
        """GPUs that the engine will use in one worker: tensor x pipeline x data parallel size."""
        return self.tensor_size * (self.pipeline_parallel_size or 1) * self.data_parallel_size

    @property
    def device_count(self) -> int:
        """GPUs in the device set of each worker of this pool."""
        return self.parallel_size if self.gpus_per_worker is None else self.gpus_per_worker

    @property
    def worker_names(self) -> tuple[str, ...]:
        """``NAME/0`` ... in order."""
        return tuple(f"{self.name}/{index}" for index in range(self.workers))


class Remark(Struct, frozen=True, kw_only=True):
    """A problem or a warning; ``code`` is stable, ``message`` a sentence with the numbers and the way out.

    ``pool`` is None where the remark is about the file or the host as a whole.
    """

    code: str
    pool: str | None
    message: str


class Fleet(Struct, frozen=True, kw_only=True):
    """All pools of one host, in file order, with what the decoder had to remark."""

    pools: tuple[Pool, ...]
    warnings: tuple[Remark, ...] = ()

    def pool(self, name: str) -> Pool:
        """Return the pool called ``name``; KeyError where there is none."""
        for pool in self.pools:
            if pool.name == name:
                return pool
        raise KeyError(name)
