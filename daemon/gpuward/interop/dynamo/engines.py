"""What each of Dynamo's engines is started as today: vLLM as an engine of gpuward, the others as commands."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Final

from gpuward.config.model_path import absolute_from, locate_model
from gpuward.config.vllm_arguments import is_vllm_option
from gpuward.interop.dynamo.importing import Importing, braces, flag_words, number, without_meaning
from gpuward.interop.dynamo.keys import NUMBERS, OWN_FIELDS, SGLANG_WITHOUT_MEANING, WITHOUT_MEANING

_TAKEN: Final = (*OWN_FIELDS, *WITHOUT_MEANING, "kv-transfer-config", "common-configs")
_NEARLY: Final = 0.88
"""As alike as a word and its misspelling: enable-log-requests and disable-log-requests are 0.87."""

_HEALTH_URL = "http://127.0.0.1:{port}/health"


def take_vllm(importing: Importing) -> None:
    """Keys that a pool has go there; the rest are vLLM's own and are passed on."""
    importing.table["engine"] = "vllm"
    for key, value in importing.service.keys.items():
        if key in OWN_FIELDS:
            field_key = OWN_FIELDS[key]
            importing.table[field_key] = number(value) if field_key in NUMBERS else value
        elif key in WITHOUT_MEANING:
            without_meaning(importing, key, value, WITHOUT_MEANING[key])
        elif key == "kv-transfer-config":
            _take_kv_transfer(importing, value)
        else:
            _pass_on(importing, key, value)
    if importing.words:
        importing.table["extra-args"] = importing.words
    if "encode" in importing.service.name.lower():
        importing.warn(
            "role-not-imported",
            "in Dynamo this service ran only the vision encoder, in code of its own; here it is a whole vLLM server: "
            "leave it out if the model needs no separate encoder",
        )


def _pass_on(importing: Importing, key: str, value: object) -> None:
    """Give vLLM an option that is its own; what nearly is a key that would have been taken here is asked about."""
    words = flag_words(key, value)
    near = difflib.get_close_matches(key[:60], _TAKEN, n=1, cutoff=_NEARLY) if not is_vllm_option(key) else []
    if near:
        said = " ".join(words)[:60] or f"--{key}"
        importing.warn("unknown-key-passed-on", f"passed on to vLLM: {said}; did you mean {near[0]}?")
    importing.words += words


def _take_kv_transfer(importing: Importing, value: object) -> None:
    """The connector that Dynamo patched into vLLM has vLLM's own name now; ranks are refused by vLLM today."""
    try:
        config = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        config = None
    if not isinstance(config, dict):
        importing.problems.append(
            importing.service.section.bad_value("kv-transfer-config", value, "must be a JSON object")
        )
        return
    if config.get("kv_connector") == "DynamoNixlConnector":
        config = {**config, "kv_connector": "NixlConnector", "kv_role": "kv_both"}
        importing.warn(
            "kv-connector-renamed",
            "kv_connector DynamoNixlConnector is NixlConnector with kv_role kv_both today: the worker gets that",
        )
    dropped = [key for key in ("kv_rank", "kv_parallel_size") if key in config]
    for key in dropped:
        config = {name: item for name, item in config.items() if name != key}
    if dropped:
        importing.warn(
            "key-without-meaning", f"kv-transfer-config: vLLM refuses {' and '.join(dropped)} today; left out"
        )
    importing.words += flag_words("kv-transfer-config", config)


def take_sglang(importing: Importing) -> None:
    """SGLang's own server understands the same keys; what Dynamo added in front of it is missing."""
    keys = dict(importing.service.keys)
    model = keys.pop("model-path", keys.pop("model", None))
    port = keys.pop("port", None)
    if port is not None:
        importing.table["port"] = number(port)
    words = [
        "python3",
        "-m",
        "sglang.launch_server",
        "--model-path",
        _model_for_command(importing, model, "model-path"),
    ]
    for key, value in keys.items():
        if key in (WITHOUT_MEANING.keys() - {"enable-disagg"}) | SGLANG_WITHOUT_MEANING.keys():
            without_meaning(importing, key, value, {**WITHOUT_MEANING, **SGLANG_WITHOUT_MEANING}[key])
        elif key == "cuda-visible-device-offset":
            importing.table["first-gpu"] = number(value)
        else:
            importing.words += [braces(word) for word in flag_words(key, value)]
    importing.table["tensor-parallel-size"] = _sglang_parallel_size(keys)
    if "mem-fraction-static" in keys:
        importing.table["gpu-memory-utilization"] = number(keys["mem-fraction-static"])
    _take_command(importing, words, "SGLang's own server")


def _sglang_parallel_size(keys: Mapping[str, object]) -> object:
    """With attention data parallelism the ranks are among the tensor ranks; otherwise each is a copy of them."""
    tensor = number(keys.get("tp-size", keys.get("tp", keys.get("tensor-parallel-size", 1))))
    data = number(keys.get("dp-size", keys.get("dp", 1)))
    copies = isinstance(tensor, int) and isinstance(data, int) and keys.get("enable-dp-attention") is not True
    return tensor * data if copies and isinstance(tensor, int) and isinstance(data, int) else tensor


def take_trtllm(importing: Importing) -> None:
    """``trtllm-serve`` takes the model and the file of engine options; nothing else of a service has a place there."""
    keys = dict(importing.service.keys)
    model = keys.pop("model-path", keys.pop("model", None)) or _served_model(importing)
    words = ["trtllm-serve", _model_for_command(importing, model, "model-path")]
    options = keys.pop("extra-engine-args", None)
    if isinstance(options, str):
        importing.words += ["--extra_llm_api_options", braces(absolute_from(options, importing.around.directory))]
    if "cuda-visible-device-offset" in keys:
        importing.table["first-gpu"] = number(keys.pop("cuda-visible-device-offset"))
    for key, value in keys.items():
        without_meaning(importing, key, value, WITHOUT_MEANING.get(key, "trtllm-serve has no such option"))
    _take_command(importing, words, "trtllm-serve")


def _served_model(importing: Importing) -> str | None:
    """Early files name the model only inside engine_args, a format of Dynamo 0.x that nothing reads today."""
    if importing.served_model is None:
        importing.refuse(
            "engine-not-supported",
            "its model is named only inside engine_args, which nothing reads today; give it a model-path, or write a "
            'pool with engine = "command" and command = ["trtllm-serve", MODEL, "--port", "{port}"]',
        )
        return None
    importing.warn(
        "model-from-served-name",
        f"its model is named only inside engine_args, which nothing reads today; taken is '{importing.served_model}', "
        "the name that the frontend serves; give the service a model-path if that is another model",
    )
    return importing.served_model


def _take_command(importing: Importing, words: list[str], program: str) -> None:
    importing.table["engine"] = "command"
    importing.table["command"] = [*words, "--host", "127.0.0.1", "--port", "{port}", *importing.words]
    importing.table["ready-url"] = _HEALTH_URL
    importing.warn(
        "engine-not-native",
        f'gpuward knows this engine only as a command: it runs {program} (engine = "command"), which answers HTTP '
        "itself and takes no part in Dynamo's routing",
    )


def _model_for_command(importing: Importing, model: object, key: str) -> str:
    if not isinstance(model, str) or not model:
        if model is not None:
            importing.problems.append(importing.service.section.bad_value(key, model, "must be a path or a name"))
        return "MODEL"
    located, doubt = locate_model(model, importing.around.directory, importing.around.path_exists)
    if doubt:
        importing.warn("model-not-found", doubt)
    return braces(located)
