"""What a model directory says, and vLLM's refusals of it."""

from __future__ import annotations

import json
import os
from typing import Final

from gpuward.sim.vllm.arguments import ServeArguments

_LENGTH_WITHOUT_CONFIG: Final = 8192


class ConfigRefused(Exception):
    """The configuration cannot work; the text is what vLLM's traceback ends with."""


def check_config(arguments: ServeArguments, visible: int) -> None:
    """Refuse what vLLM refuses before it starts an engine; ``visible`` GPUs. Raises ConfigRefused."""
    utilization, world_size = arguments.gpu_memory_utilization, arguments.world_size
    if not 0 < utilization <= 1:
        bound = "less than or equal to 1" if utilization > 1 else "greater than 0"
        kind = "less_than_equal" if utilization > 1 else "greater_than"
        raise ConfigRefused(
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for CacheConfig\ngpu_memory_utilization\n"
            f"  Input should be {bound} [type={kind}, input_value={utilization:g}, input_type=float]\n"
            f"    For further information visit https://errors.pydantic.dev/2.14/v/{kind}"
        )
    if visible == 0:
        raise ConfigRefused("RuntimeError: No CUDA GPUs are available")
    if world_size > visible:
        raise ConfigRefused(
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ParallelConfig\n"
            f"  Value error, World size ({world_size}) is larger than the number of available GPUs ({visible}) in this "
            "node. If this is intentional and you are using:\n- ray, set '--distributed-executor-backend ray'.\n"
            "- multiprocessing, set '--nnodes' appropriately. [type=value_error]"
        )


def model_length(arguments: ServeArguments) -> int:
    """Return the maximum model length in tokens. Raises ConfigRefused for a missing model, and a wish too long.

    A missing absolute path is refused with vLLM's words. Every other name is taken for a model of a hub: a simulated
    host has no weights, and fleets name models that lie elsewhere.
    """
    model, wanted = arguments.model, arguments.max_model_len
    if not os.path.isdir(model):  # noqa: PTH112  light imports
        if os.path.isabs(model):  # noqa: PTH117  light imports
            raise ConfigRefused(
                "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or "
                f"'namespace/repo_name': '{model}'. Use `repo_type` argument if needed."
            )
        return wanted or _LENGTH_WITHOUT_CONFIG
    derived = _derived_length(model)
    if wanted is not None and derived is not None and wanted > derived:
        raise ConfigRefused(
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
            f"  Value error, User-specified max_model_len ({wanted}) is greater than the derived max_model_len "
            f"(max_position_embeddings={derived} or model_max_length=None in model's config.json). To allow "
            "overriding this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1. [type=value_error]"
        )
    return wanted or derived or _LENGTH_WITHOUT_CONFIG


def _derived_length(directory: str) -> int | None:
    try:
        with open(f"{directory}/config.json", encoding="utf-8") as file:  # noqa: PTH123  light imports
            length = json.load(file).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None
    return length if isinstance(length, int) else None
