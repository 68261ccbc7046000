"""Reads words of vLLM's command line as vLLM does: underscores, abbreviations, ``-tp2``. Starts and refuses nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

_SHORT: Final[Mapping[str, str]] = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-dpl": "--data-parallel-size-local",
    "-dpn": "--data-parallel-rank",
    "-dpr": "--data-parallel-start-rank",
    "-dpa": "--data-parallel-address",
    "-dpp": "--data-parallel-rpc-port",
    "-dpb": "--data-parallel-backend",
    "-dph": "--data-parallel-hybrid-lb",
    "-dpe": "--data-parallel-external-lb",
    "-asc": "--api-server-count",
    "-dcp": "--decode-context-parallel-size",
    "-q": "--quantization",
}
_GLUED: Final = re.compile(r"(-tp|-pp|-dpl|-dpn|-dp)=?(\d+)")
_NAMES: Final = """
additional-config aggregate-engine-logging all2all-backend allow-credentials allowed-headers allowed-local-media-path
allowed-methods allowed-origins api-key api-server-count async-scheduling attention-backend block-size chat-template
chat-template-content-format code-revision collect-detailed-traces compilation-config config config-format convert
cpu-offload-gb cudagraph-capture-sizes data-parallel-address data-parallel-backend data-parallel-external-lb
data-parallel-hybrid-lb data-parallel-rank data-parallel-rpc-port data-parallel-size data-parallel-size-local
data-parallel-start-rank decode-context-parallel-size default-chat-template-kwargs device-ids
disable-access-log-for-endpoints disable-cascade-attn disable-custom-all-reduce disable-fastapi-docs
disable-hybrid-kv-cache-manager disable-log-requests disable-log-stats disable-uvicorn-access-log
distributed-executor-backend download-dir dtype ec-transfer-config enable-auto-tool-choice enable-chunked-prefill
enable-expert-parallel enable-force-include-usage enable-log-requests enable-lora enable-prefix-caching
enable-prompt-tokens-details enable-request-id-headers enable-server-load-tracking enable-sleep-mode
enable-ssl-refresh enforce-eager fully-sharded-loras generation-config gpu-memory-utilization h11-max-header-count
h11-max-incomplete-event-size headless hf-config-path hf-overrides hf-token host ignore-patterns kv-cache-dtype
kv-cache-memory-bytes kv-events-config kv-offloading-backend kv-offloading-size kv-transfer-config
limit-mm-per-prompt load-format log-config-file logits-processors logprobs-mode long-prefill-token-threshold
lora-dtype lora-modules master-addr master-port max-cpu-loras max-log-len max-logprobs max-lora-rank max-loras
max-model-len max-num-batched-tokens max-num-partial-prefills max-num-seqs max-parallel-loading-workers
max-seq-len-to-capture middleware mm-encoder-tp-mode mm-processor-cache-gb mm-processor-kwargs model model-impl
model-loader-extra-config nnodes node-rank num-gpu-blocks-override optimization-level otlp-traces-endpoint
override-generation-config performance-mode pipeline-parallel-size pooler-config port prefix-caching-hash-algo
profiler-config quantization reasoning-parser response-role return-tokens-as-token-ids revision root-path runner
safetensors-load-strategy scheduler-cls scheduling-policy seed served-model-name
show-hidden-metrics-for-version shutdown-timeout skip-tokenizer-init speculative-config ssl-ca-certs ssl-cert-reqs
ssl-certfile ssl-ciphers ssl-keyfile stream-interval structured-outputs-config swap-space task
tensor-parallel-size tokenizer tokenizer-mode tokenizer-revision tool-call-parser tool-parser-plugin
trust-remote-code uds use-tqdm-on-load uvicorn-log-level watchdog-config worker-cls worker-extension-cls
"""
_FLAGS: Final = frozenset(f"--{name}" for name in _NAMES.split())
"""Flags of `vllm serve` (0.32), so that an abbreviation is told from a flag: argparse takes any prefix of one only."""


def is_vllm_option(name: str) -> bool:
    """Whether vLLM has an option of exactly this name, written without its hyphens in front."""
    return f"--{name}" in _FLAGS


def flag_of(word: str) -> str:
    """Return the whole flag that a word is or begins with; empty where it is none.

    An abbreviation that vLLM would call ambiguous, and a flag that is not known here, stay as they are written.
    """
    if glued := _GLUED.fullmatch(word):
        return _SHORT[glued[1]]
    written = word.partition("=")[0]
    if not written.startswith("--"):
        return _SHORT.get(written, written if written.startswith("-") and not _is_number(written) else "")
    head, dot, rest = written.partition(".")
    head = head.replace("_", "-")
    if head in _FLAGS or len(head) <= len("--"):
        return head + dot + rest
    whole = [flag for flag in _FLAGS if flag.startswith(head)]
    return (whole[0] if len(whole) == 1 else head) + dot + rest


@lru_cache(maxsize=256)
def options(words: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    """Return the values behind each flag, by its whole name; of a flag that is there twice the last, as argparse."""
    found: dict[str, tuple[str, ...]] = {}
    current = ""
    for word in words:
        flag = flag_of(word)
        if not flag:
            if current:
                found[current] = (*found[current], word)
            continue
        glued = _GLUED.fullmatch(word)
        _, equals, value = word.partition("=")
        found[flag] = (glued[2],) if glued else (value,) if equals else ()
        current = "" if glued or equals else flag
    return found


def option(words: tuple[str, ...], flag: str) -> str | None:
    """Return the first value of ``flag``; None where it is not there or has none."""
    values = options(words).get(flag, ())
    return values[0] if values else None


def data_parallel_engines(words: tuple[str, ...]) -> int:
    """How many engines, each with GPUs of its own, these words make one worker run on this host.

    With a rank of its own, or a number of local engines, a worker is one part of several (vLLM, "Data Parallel
    Deployment").
    """
    given = options(words)
    local = given.get("--data-parallel-size-local") or (
        () if "--data-parallel-rank" in given else given.get("--data-parallel-size", ())
    )
    return int(local[0]) if local and local[0].isdecimal() and 0 < int(local[0][:6]) <= 1024 else 1


def _is_number(word: str) -> bool:
    return word[1:].replace(".", "", 1).isdecimal()
