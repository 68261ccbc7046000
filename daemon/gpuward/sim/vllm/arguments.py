"""The command line of ``vllm serve`` 0.32.0, as far as it means something here; the rest of its flags is accepted."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple, NoReturn

_VALUES: Final = """
additional-config allowed-headers allowed-methods allowed-origins api-server-count attention-backend
block-size chat-template chat-template-content-format code-revision collect-detailed-traces compilation-config
config config-format convert cpu-offload-gb cudagraph-capture-sizes data-parallel-address data-parallel-backend
data-parallel-rank data-parallel-rpc-port data-parallel-size data-parallel-size-local data-parallel-start-rank
decode-context-parallel-size device-ids distributed-executor-backend download-dir dtype ec-transfer-config
generation-config hf-config-path hf-overrides hf-token ignore-patterns kv-cache-dtype kv-cache-memory-bytes kv-
events-config kv-offloading-backend kv-offloading-size limit-mm-per-prompt load-format log-config-file logits-
processors long-prefill-token-threshold lora-dtype master-addr master-port max-cpu-loras max-log-len max-
logprobs max-lora-rank max-loras max-num-batched-tokens max-num-partial-prefills max-parallel-loading-workers
max-seq-len-to-capture middleware mm-processor-kwargs model-loader-extra-config nnodes node-rank num-gpu-blocks-
override optimization-level otlp-traces-endpoint override-generation-config performance-mode prefix-caching-
hash-algo profiler-config quantization reasoning-parser response-role revision root-path runner scheduling-
policy seed show-hidden-metrics-for-version speculative-config ssl-ca-certs ssl-certfile ssl-keyfile stream-
interval structured-outputs-config swap-space task tokenizer tokenizer-mode tokenizer-revision tool-call-parser
tool-parser-plugin uds uvicorn-log-level worker-cls worker-extension-cls
"""
_SWITCHES: Final = """
allow-credentials async-scheduling calculate-kv-scales data-parallel-external-lb data-parallel-hybrid-lb
disable-cascade-attn disable-custom-all-reduce disable-fastapi-docs disable-hybrid-kv-cache-manager disable-log-
requests disable-log-stats disable-uvicorn-access-log enable-auto-tool-choice enable-chunked-prefill enable-
expert-parallel enable-force-include-usage enable-log-requests enable-lora enable-prefix-caching enable-prompt-
tokens-details enable-request-id-headers enable-scale-out enable-server-load-tracking enable-sleep-mode enforce-
eager fully-sharded-loras headless return-tokens-as-token-ids skip-tokenizer-init trust-remote-code use-tqdm-on-
load
"""
_SHORT: Final = {"data-parallel-size": "-dp", "decode-context-parallel-size": "-dcp", "quantization": "-q"}
_HUMAN: Final = {"": 1, "k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20, "g": 10**9, "G": 2**30}
_MAIN_USAGE: Final = """\
usage: main.py [-h] [-v]
               {chat,complete,serve,launch,bench,collect-env,download-kernels,preload,run-batch,snapshot}
               ..."""


class ServeArguments(NamedTuple):
    """What was asked for. ``max_model_len`` None: as the model says."""

    model: str
    served_name: str
    host: str
    port: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    gpu_memory_utilization: float
    max_model_len: int | None
    max_num_seqs: int
    shutdown_timeout_s: float
    access_log: bool
    quiet_endpoints: tuple[str, ...] = ()
    other_names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    certificate: tuple[str, str] | None = None
    log_stats: bool = True
    pooling: bool = False

    @property
    def world_size(self) -> int:
        """How many ranks, each on a GPU of its own."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


class _Parser(argparse.ArgumentParser):
    """Says what vLLM says: two lines, exit code 2."""

    def error(self, message: str) -> NoReturn:
        print(f"usage: vllm serve [model_tag] [options]\nmain.py serve: error: {message}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2)


def parse_serve(arguments: Sequence[str]) -> ServeArguments:
    """Return what follows ``serve``. Raises SystemExit(2) after vLLM's own message."""
    known, unknown = _parser().parse_known_args([_with_hyphens(word) for word in arguments])
    if unknown:
        print(f"{_MAIN_USAGE}\nmain.py: error: unrecognized arguments: {' '.join(unknown)}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2)
    model = str(known.model_tag or known.model)
    return ServeArguments(
        model=model,
        served_name=str(known.served_model_name[0] if known.served_model_name else model),
        host=known.host or "0.0.0.0",
        port=known.port,
        tensor_parallel_size=known.tensor_parallel_size,
        pipeline_parallel_size=known.pipeline_parallel_size,
        gpu_memory_utilization=known.gpu_memory_utilization,
        max_model_len=known.max_model_len,
        max_num_seqs=known.max_num_seqs,
        shutdown_timeout_s=known.shutdown_timeout,
        access_log=not known.disable_uvicorn_access_log,
        other_names=tuple((known.served_model_name or [])[1:]),
        api_keys=tuple(known.api_key or ()),
        certificate=(known.ssl_certfile, known.ssl_keyfile) if known.ssl_certfile else None,
        log_stats=not known.disable_log_stats,
        pooling="pooling" in (known.runner, known.task) or known.convert in ("embed", "classify"),
        quiet_endpoints=tuple(filter(None, known.disable_access_log_for_endpoints.split(","))),
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vllm serve", allow_abbrev=False, description="The simulated vLLM worker.")
    parser.add_argument("model_tag", nargs="?")
    parser.add_argument("--model", default="Qwen/Qwen3-0.6B")
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--tensor-parallel-size", "-tp", type=_positive, default=1)
    parser.add_argument("--pipeline-parallel-size", "-pp", type=_positive, default=1)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.92)
    parser.add_argument("--max-model-len", type=_human_int)
    parser.add_argument("--max-num-seqs", type=_positive, default=256)
    parser.add_argument("--shutdown-timeout", type=float, default=0.0)
    parser.add_argument("--kv-transfer-config", type=_json_object)
    parser.add_argument("--lora-modules", nargs="+")
    parser.add_argument("--api-key", nargs="+")
    parser.add_argument("--disable-access-log-for-endpoints", default="")
    for name in _VALUES.split():
        parser.add_argument(f"--{name}", *([_SHORT[name]] if name in _SHORT else []), help=argparse.SUPPRESS)
    for name in _SWITCHES.split():
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=False, help=argparse.SUPPRESS)
    return parser


def _with_hyphens(word: str) -> str:
    """``--max_model_len`` is ``--max-model-len`` to vLLM; what follows an equals sign stays."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else word


def _positive(text: str) -> int:
    number = _int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}")
    return number


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from None


def _human_int(text: str) -> int | None:
    """``16k`` is 16000, ``16K`` is 16384, ``auto`` and -1 leave it to the model."""
    if text in ("auto", "-1"):
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"invalid human_readable_int_or_auto value: {text!r}")
    return int(float(match[1]) * _HUMAN[match[2]])


def _json_object(text: str) -> str:
    try:
        json.loads(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"Value {text} cannot be converted to <function loads at 0x7f0000000000>."
        ) from None
    return text
