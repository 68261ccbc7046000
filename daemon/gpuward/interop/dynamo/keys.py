"""What each key of a Dynamo 0.x service means today. Words only: `dynamo_service` acts on them.

Sources: the options of `dynamo serve` in ai_dynamo 0.1.0 to 0.3.2 and of `dynamo.vllm` and `dynamo.frontend` in 1.6.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_ROUTER_KEY: Final = "it was an option of Dynamo's router; in Dynamo 1.x it is the frontend's"
_MULTIMODAL_KEY: Final = "it was an option of Dynamo's multimodal example; vLLM reads it from the model"
_HEALTH_KEY: Final = "it belonged to Dynamo's own start order; use depends-on"

WITHOUT_MEANING: Final[Mapping[str, str]] = {
    "remote-prefill": "prefill is remote where a router sends it to prefill workers; the frontend of Dynamo 1.x "
    "enforces it with --enforce-disagg",
    "conditional-disagg": f"{_ROUTER_KEY} --router-conditional-disagg",
    "max-local-prefill-length": f"{_ROUTER_KEY} --router-conditional-disagg-config (eff_isl_threshold)",
    "max-prefill-queue-size": f"{_ROUTER_KEY} --router-conditional-disagg-config (nearest: prefill_busy_threshold)",
    "router": f"{_ROUTER_KEY} --router-mode",
    "enable-disagg": "a worker no longer needs to be told; the kv-transfer-config decides",
    "min-workers": _HEALTH_KEY,
    "min-worker": _HEALTH_KEY,
    "min-prefill-workers": _HEALTH_KEY,
    "disable-log-requests": "vLLM logs no requests unless --enable-log-requests is given",
    "endpoint": "gpuward's workers serve HTTP themselves",
    "prompt-template": _MULTIMODAL_KEY,
    "image-token-id": _MULTIMODAL_KEY,
    "video-token-id": _MULTIMODAL_KEY,
    "dummy-token-id": _MULTIMODAL_KEY,
    "dummy-tokens-per-frame": _MULTIMODAL_KEY,
    "num-patches": _MULTIMODAL_KEY,
    "num-sampled-frames": _MULTIMODAL_KEY,
    "frame-height": _MULTIMODAL_KEY,
    "frame-width": _MULTIMODAL_KEY,
    "frame-channels": _MULTIMODAL_KEY,
}
"""Keys that nothing reads any more, and what has taken their place."""

SGLANG_WITHOUT_MEANING: Final[Mapping[str, str]] = {
    "skip-tokenizer-init": "Dynamo's frontend did the tokenising; a server that is asked for text must do it itself",
}

OWN_FIELDS: Final[Mapping[str, str]] = {
    "model": "model",
    "gpu-memory-utilization": "gpu-memory-utilization",
    "tensor-parallel-size": "tensor-parallel-size",
    "pipeline-parallel-size": "pipeline-parallel-size",
    "max-model-len": "max-model-len",
    "port": "port",
    "cuda-visible-device-offset": "first-gpu",
}
"""Service keys that are keys of a pool."""

WRITTEN_AS: Final[Mapping[str, str]] = {
    "workers": "ServiceArgs.workers",
    "gpus-per-worker": "ServiceArgs.resources.gpu",
    "first-gpu": "cuda-visible-device-offset",
    "gpus": "ServiceArgs.envs.CUDA_VISIBLE_DEVICES",
}
"""Keys of a pool as the service calls them, for complaints."""

NUMBERS: Final = frozenset(OWN_FIELDS.values()) - {"model"}
"""Own fields that hold a number; a number in quotes is common in these files and is taken as one."""

NEGATED: Final = frozenset({"enable-prefix-caching", "use-tqdm-on-load", "multi-step-stream-outputs"})
"""Flags that are on by default in vLLM: ``false`` must be said, as Dynamo from 0.3 on did."""

CONSUMED: Final = frozenset({"ServiceArgs", "common-configs"})

ENGINE_MARKS: Final = frozenset(
    {
        "model",
        "model-path",
        "engine-args",
        "extra-engine-args",
        "llmapi-disaggregated-config",
        "tensor-parallel-size",
        "gpu-memory-utilization",
        "kv-transfer-config",
    }
)
"""Keys that only a service with an engine in it has (together with a name that says worker)."""
