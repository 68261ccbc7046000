"""From one Dynamo service to the keys of one pool. What cannot be kept is a warning, what cannot run a problem."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from gpuward.config.fleet import Remark
from gpuward.config.model_path import absolute_from, locate_model
from gpuward.config.pools import PoolTable, Surroundings
from gpuward.interop.dynamo_keys import NEGATED, NUMBERS, OWN_FIELDS, SGLANG_WITHOUT_MEANING, WITHOUT_MEANING
from gpuward.interop.dynamo_service import Service

_HEALTH_URL = "http://127.0.0.1:{port}/health"


@dataclass(slots=True)
class Importing:
    """One service on its way to a pool: ``table`` and ``words`` (engine arguments) grow, remarks are collected."""

    service: Service
    around: Surroundings
    served_model: str | None
    problems: list[Remark]
    warnings: list[Remark]
    table: dict[str, object] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)

    def warn(self, code: str, sentence: str) -> None:
        """Add a warning about this service."""
        self.warnings.append(self.service.section.remark(code, sentence))

    def refuse(self, code: str, sentence: str) -> None:
        """Add a problem about this service."""
        self.problems.append(self.service.section.remark(code, sentence))


def pool_table(
    service: Service, around: Surroundings, served_model: str | None, problems: list[Remark], warnings: list[Remark]
) -> PoolTable:
    """Return the pool that does today what the service did. ``served_model``: what the file's frontend serves."""
    importing = Importing(service, around, served_model, problems, warnings)
    if service.workers is not None:
        importing.table["workers"] = number(service.workers)
    _take_environment(importing)
    if service.backend == "vllm":
        _take_vllm(importing)
    elif service.backend == "sglang":
        _take_sglang(importing)
    else:
        _take_trtllm(importing)
    if not _spans_hosts(importing):
        _take_gpus(importing)
    return PoolTable(name=service.name, table=importing.table, section=service.section)


def number(value: object) -> object:
    """A number that stands in quotes, as a number; anything else unchanged, for the pool's rules to judge."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def flag_words(key: str, value: object) -> list[str]:
    """A key as command line words: true is a flag, false is left out (or negated), tables are JSON."""
    if value is None or value is False:
        return [f"--no-{key}"] if value is False and key in NEGATED else []
    if value is True:
        return [f"--{key}"]
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}", json.dumps(value, separators=(",", ":")) if isinstance(value, list | dict) else str(value)]


def _take_vllm(importing: Importing) -> None:
    importing.table["engine"] = "vllm"
    for key, value in importing.service.keys.items():
        if key in OWN_FIELDS:
            field_key = OWN_FIELDS[key]
            importing.table[field_key] = number(value) if field_key in NUMBERS else value
        elif key in WITHOUT_MEANING:
            _without_meaning(importing, key, value, WITHOUT_MEANING[key])
        elif key == "kv-transfer-config":
            _take_kv_transfer(importing, value)
        else:
            importing.words += flag_words(key, value)
    if importing.words:
        importing.table["extra-args"] = importing.words
    if "encode" in importing.service.name.lower():
        importing.warn(
            "role-not-imported",
            "in Dynamo this service ran only the vision encoder, in code of its own; here it is a whole vLLM server: "
            "leave it out if the model needs no separate encoder",
        )


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


def _take_sglang(importing: Importing) -> None:
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
            _without_meaning(importing, key, value, {**WITHOUT_MEANING, **SGLANG_WITHOUT_MEANING}[key])
        elif key == "cuda-visible-device-offset":
            importing.table["first-gpu"] = number(value)
        else:
            importing.words += [_braces(word) for word in flag_words(key, value)]
    importing.table["tensor-parallel-size"] = _sglang_parallel_size(keys)
    if "mem-fraction-static" in keys:
        importing.table["gpu-memory-utilization"] = number(keys["mem-fraction-static"])
    _take_command(importing, words, "SGLang's own server")


def _take_trtllm(importing: Importing) -> None:
    keys = dict(importing.service.keys)
    model = keys.pop("model-path", keys.pop("model", None)) or _served_model(importing)
    words = ["trtllm-serve", _model_for_command(importing, model, "model-path")]
    options = keys.pop("extra-engine-args", None)
    if isinstance(options, str):
        importing.words += ["--extra_llm_api_options", _braces(absolute_from(options, importing.around.directory))]
    if "cuda-visible-device-offset" in keys:
        importing.table["first-gpu"] = number(keys.pop("cuda-visible-device-offset"))
    for key, value in keys.items():
        _without_meaning(importing, key, value, WITHOUT_MEANING.get(key, "trtllm-serve has no such option"))
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
    return _braces(located)


def _take_environment(importing: Importing) -> None:
    env = dict(importing.service.env)
    devices = env.pop("CUDA_VISIBLE_DEVICES", None)
    if isinstance(devices, str):
        names = [name.strip() for name in devices.split(",") if name.strip()]
        importing.table["gpus"] = [int(name) if name.lstrip("-").isdigit() else name for name in names]
        importing.warn(
            "env-became-gpus",
            f"CUDA_VISIBLE_DEVICES = '{devices}' becomes `gpus`: gpuward sets that variable for each worker "
            "(Dynamo overwrote it or lost it)",
        )
    if env:
        importing.table["env"] = env


def _take_gpus(importing: Importing) -> None:
    """``gpu`` is per worker. Not given: as many as the engine uses, where Dynamo 0.2 and later pinned nothing."""
    needed = _gpus_used(importing)
    if importing.service.gpu is not None:
        gpu = importing.table["gpus-per-worker"] = number(importing.service.gpu)
        if isinstance(gpu, float):
            _refuse_gpu(importing, gpu, "a part of a GPU is asked for by share = true and gpu-memory-utilization")
        elif gpu == 0:
            _refuse_gpu(importing, gpu, "must be at least 1; Dynamo left such a worker unpinned, on GPU 0")
        return
    if "gpus-per-worker" not in importing.table and needed is not None:
        importing.warn(
            "dynamo-unpinned",
            f"ServiceArgs.resources.gpu is not given: each worker gets {needed}, what its parallel sizes ask for "
            "(Dynamo 0.2 and later left such a service unpinned, on GPU 0)",
        )


def _refuse_gpu(importing: Importing, gpu: object, must: str) -> None:
    importing.problems.append(importing.service.section.bad_value("gpus-per-worker", gpu, must))
    del importing.table["gpus-per-worker"]


def _gpus_used(importing: Importing) -> int | None:
    """Tensor x pipeline x data parallel size; data parallel engines inside one worker are counted here only."""
    table, keys = importing.table, importing.service.keys
    tensor, pipeline = table.get("tensor-parallel-size", 1), table.get("pipeline-parallel-size", 1)
    data = number(keys.get("data-parallel-size", 1)) if importing.service.backend == "vllm" else 1
    if not (isinstance(tensor, int) and isinstance(pipeline, int) and isinstance(data, int)):
        return None
    used = tensor * pipeline * data
    if data > 1:
        _take_data_parallel(importing, used, f"tensor {tensor} x pipeline {pipeline} x data {data} = {used}")
    return used


def _take_data_parallel(importing: Importing, used: int, sum_: str) -> None:
    given = number(importing.service.gpu)
    if given is None:
        importing.table["gpus-per-worker"] = used
    elif given != used:
        importing.refuse(
            "parallel-size-mismatch",
            f"{sum_}, but ServiceArgs.resources.gpu is {given}; it is per worker and must be {used}",
        )
    importing.table["allow-idle-gpus"] = True
    importing.warn(
        "data-parallel",
        f"{sum_} GPUs per worker: allow-idle-gpus is set, as the plan counts tensor and pipeline only; for a dense "
        "model independent workers (workers = N) are simpler and are restarted one by one",
    )


def _sglang_parallel_size(keys: Mapping[str, object]) -> object:
    """With attention data parallelism the ranks are among the tensor ranks; otherwise each is a copy of them."""
    tensor = number(keys.get("tp-size", keys.get("tp", keys.get("tensor-parallel-size", 1))))
    data = number(keys.get("dp-size", keys.get("dp", 1)))
    copies = isinstance(tensor, int) and isinstance(data, int) and keys.get("enable-dp-attention") is not True
    return tensor * data if copies and isinstance(tensor, int) and isinstance(data, int) else tensor


def _spans_hosts(importing: Importing) -> bool:
    """Refuse what one host cannot run; its sums over GPUs mean nothing here."""
    keys = {key: number(value) for key, value in importing.service.keys.items()}
    signs = [key for key in ("nnodes", "num-nodes") if _above(keys.get(key), 1)]
    signs += [key for key in ("node-rank", "data-parallel-start-rank") if _above(keys.get(key), 0)]
    size, local = keys.get("data-parallel-size"), keys.get("data-parallel-size-local")
    if isinstance(size, int) and isinstance(local, int) and size > local:
        signs.append("data-parallel-size")
    if signs:
        said = ", ".join(f"{key} = {keys[key]}" for key in signs)
        beside = f" of which data-parallel-size-local = {local} are here" if "data-parallel-size" in signs else ""
        importing.refuse(
            "several-hosts",
            f"{said}{beside}: the service spans several hosts, gpuward runs what is on one; "
            "give each host a file with its own part",
        )
    return bool(signs)


def _above(value: object, limit: int) -> bool:
    return isinstance(value, int) and value > limit


def _without_meaning(importing: Importing, key: str, value: object, instead: str) -> None:
    importing.warn("key-without-meaning", f"{key} = {json.dumps(value, default=str)[:60]}: not used; {instead}")


def _braces(word: str) -> str:
    """Braces that a command must not take for placeholders."""
    return word.replace("{", "{{").replace("}", "}}")
