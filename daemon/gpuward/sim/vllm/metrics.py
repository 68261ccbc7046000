"""The Prometheus text of the simulated worker: vLLM 0.32.0's names for what supervision reads."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple


class Gauges(NamedTuple):
    """What the engine reported last; a frozen engine leaves 0 and 0, "idle", as vLLM's does."""

    running: int = 0
    waiting: int = 0


class Metrics:
    """Counters of one API server's life."""

    def __init__(self, model_name: str, utilization: float, kv_tokens: int) -> None:
        self.gauges = Gauges()
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.iterations = 0
        self.asleep = False
        self.finished = {"stop": 0, "length": 0, "abort": 0}
        self._labels = f'engine="0",model_name="{model_name}"'
        self._utilization = utilization
        self._kv_tokens = kv_tokens
        self._started_at_s = time.time()

    def record_step(self, running: int, waiting: int, tokens: int) -> None:
        """Count one engine step; ``tokens`` were generated in it."""
        self.gauges = Gauges(running, waiting)
        self.generation_tokens += tokens
        self.iterations += 1

    def text(self, tokens_in_cache: int) -> str:
        """Return the exposition; ``tokens_in_cache`` belong to running requests."""
        lines: list[str] = []
        for name, kind, value in (
            ("num_requests_running", "gauge", self.gauges.running),
            ("num_requests_waiting", "gauge", self.gauges.waiting),
            ("kv_cache_usage_perc", "gauge", min(1.0, tokens_in_cache / max(1, self._kv_tokens))),
            ("num_preemptions_total", "counter", 0),
            ("prompt_tokens_total", "counter", self.prompt_tokens),
            ("generation_tokens_total", "counter", self.generation_tokens),
        ):
            lines += self._family(name, kind, {"": value})
        states = {"awake": not self.asleep, "weights_offloaded": self.asleep, "discard_all": False}
        lines += self._family("engine_sleep_state", "gauge", {f',sleep_state="{s}"': is_ for s, is_ in states.items()})
        reasons = {f',finished_reason="{reason}"': count for reason, count in self.finished.items()}
        lines += self._family("request_success_total", "counter", reasons)
        lines += ["# TYPE vllm:iteration_tokens_total histogram"]
        tokens = self.prompt_tokens + self.generation_tokens
        for suffix, value in (("_bucket", self.iterations), ("_count", self.iterations), ("_sum", tokens)):
            bound = ',le="+Inf"' if suffix == "_bucket" else ""
            lines.append(f"vllm:iteration_tokens_total{suffix}{{{self._labels}{bound}}} {float(value)}")
        blocks = (
            f'block_size="16",gpu_memory_utilization="{self._utilization:g}",num_gpu_blocks="{self._kv_tokens // 16}"'
        )
        lines += self._family("cache_config_info", "gauge", {f",{blocks}": 1})
        lines += ["# TYPE process_start_time_seconds gauge", f"process_start_time_seconds {self._started_at_s:.2f}"]
        return "\n".join(lines) + "\n"

    def _family(self, name: str, kind: str, values: Mapping[str, float]) -> list[str]:
        family = [f"vllm:{name}{{{self._labels}{labels}}} {float(value)}" for labels, value in values.items()]
        return [f"# TYPE vllm:{name} {kind}", *family]
