"""What a start says of a model, its files and its options that no further start can serve. Data only.

Texts are those of vLLM 0.8 to 0.32, transformers, safetensors and huggingface_hub.
"""

from __future__ import annotations

from typing import Final

from gpuward.policy.diagnosis.causes import Cause, Signature, signature

_NEWER = "use a vLLM version that supports the model"
_AGAIN = "delete the file and download the model again"


def _cannot(literal: str, pattern: str, says: str, hint: str) -> Signature:
    return signature(Cause.CONFIG_ERROR, literal, pattern, says, hint=hint, permanent=True, phase="starting")


MODEL_SIGNATURES: Final = (
    _cannot(
        "gated repo",
        r"access (?:to )?(?:a )?gated repo",
        "the model is gated, and the worker's token has no access to it",
        "accept the terms on the model's page, and set HF_TOKEN in 'env'",
    ),
    _cannot(
        "GatedRepoError",
        r"GatedRepoError: ",
        "the model is gated, and the worker's token has no access to it (GatedRepo)",
        "accept the terms on the model's page, and set HF_TOKEN in 'env'",
    ),
    _cannot(
        "Bfloat16 is only supported",
        r"compute capability of at least (?P<need>[\d.]{1,5})\. "
        r"Your .{1,80}? has compute capability (?P<have>[\d.]{1,4}\b)",
        "bfloat16 needs compute capability {need}, this GPU has {have}",
        'add "--dtype=half" to extra-args',
    ),
    _cannot(
        "is not supported for the current GPU",
        r"quantization method (?P<what>\S{1,40}) is not supported for the current GPU",
        "this GPU does not support the quantisation {what}",
        "use another quantisation of the model, or other GPUs",
    ),
    _cannot(
        "SafetensorError",
        r"SafetensorError: (?P<what>.{1,160})",
        "a file of the model's weights is damaged: {what}",
        _AGAIN,
    ),
    _cannot(
        "KeyError: '",
        r"KeyError: '(?P<what>"
        r"(?:model|language_model|transformer|lm_head|layers|visual|vision_\w{1,20}|encoder|decoder)\.[\w.]{1,160})'",
        "the model's weights have {what}, for which this vLLM has no place",
        _NEWER,
    ),
    _cannot(
        "no module or parameter named",
        r"no module or parameter named '(?P<what>[^']{1,160})'",
        "the model's weights have {what}, for which this vLLM has no place",
        _NEWER,
    ),
    _cannot(
        "trust_remote_code",
        r"(?:requires you to execute|custom code which must be executed|contains custom code).{0,600}trust_remote_code",
        "the model comes with code of its own, which is not trusted",
        'read that code; if you trust it, add "--trust-remote-code" to extra-args',
    ),
    _cannot(
        "attention heads",
        r"attention heads \((?P<heads>\d{1,6})\) must be divisible by tensor parallel size \((?P<size>\d{1,6})\)",
        "the model's {heads} attention heads cannot be shared by tensor-parallel-size {size}",
        "choose a size that divides {heads}",
    ),
    _cannot(
        "appears path-like",
        r"chat template string \((?P<what>.{1,300}?)\) appears path-like",
        "there is no chat template at {what}",
        "correct --chat-template in extra-args",
    ),
    _cannot(
        "invalid ",
        r"invalid (?P<kind>tool call|reasoning) parser: (?P<what>[\w.-]{1,80})",
        "this vLLM has no {kind} parser {what}",
        "correct it in extra-args",
    ),
    _cannot(
        "instantiate the backend tokenizer",
        r"Couldn't instantiate the backend tokenizer",
        "the model has no tokenizer that can be read",
        'complete the model\'s files (tokenizer.json), or add "--tokenizer=..." to extra-args',
    ),
    _cannot(
        "load tokenizer for",
        r"Can't load tokenizer for '(?P<what>[^']{1,200})'",
        "there is no tokenizer for {what}",
        'complete the model\'s files (tokenizer.json), or add "--tokenizer=..." to extra-args',
    ),
    _cannot(
        "not a valid JSON file",
        r"config file at '(?P<what>[^']{1,300})' is not a valid JSON file",
        "{what} is no JSON",
        _AGAIN,
    ),
    _cannot(
        "JSONDecodeError: ",
        r"json\.decoder\.JSONDecodeError: (?P<what>.{1,120})",
        "a JSON file of the model, or a JSON value in extra-args, is broken: {what}",
        "correct it, or download the model again",
    ),
    _cannot(
        "adapter_config.json",
        r"FileNotFoundError: .{0,80}'(?P<what>[^']{1,300}adapter_config\.json)'",
        "there is no LoRA adapter: {what} is missing",
        "correct --lora-modules in extra-args",
    ),
    _cannot(
        "NIXL is not available",
        r"NIXL is not available",
        "the KV connector needs nixl, which is not installed",
        "install nixl in the environment of 'executable'",
    ),
    _cannot(
        "allowed NUMA nodes",
        r"Not enough allowed NUMA nodes",
        "this CPU has fewer NUMA nodes than tensor-parallel-size",
        "set VLLM_CPU_OMP_THREADS_BIND in 'env' to one list of cores per rank, as \"0-3|4-7\"",
    ),
    _cannot(
        "on kv cache allocation is less than",
        r"\((?P<free>[\d.]{1,10})/(?P<total>[\d.]{1,10}) GiB\) on kv cache allocation "
        r"is less than requested memory for kv "
        r"\((?P<need>[\d.]{1,10}) GiB\)",
        "{need} GiB are asked for the KV cache, and {free} of {total} GiB of host memory are free",
        "lower VLLM_CPU_KVCACHE_SPACE in 'env'",
    ),
)
"""In the order in which they win."""
