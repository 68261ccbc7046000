"""Old Dynamo service files: what each key comes to, and what stays visible."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuward.config.errors import ConfigError
from gpuward.config.fleet import Fleet, Pool
from gpuward.interop.dynamo.file import decode_dynamo_yaml

SEED = (Path(__file__).parents[2] / "etc/dynamo.yaml").read_text()


def decode(text: str, there: str = "") -> Fleet:
    return decode_dynamo_yaml(text, file="disagg.yaml", directory="/srv", path_exists=there.__eq__)


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        decode(text)
    return caught.value


def a_worker(lines: str, name: str = "VllmWorker", gpu: str = "{gpu: 1}") -> str:
    keys = "".join(f"  {line}\n" for line in ["gpu-memory-utilization: 0.9", *lines.splitlines()])
    return f"{name}:\n  model: org/m\n{keys}  ServiceArgs: {{resources: {gpu}}}\n"


def the_pool(lines: str) -> Pool:
    return decode(a_worker(lines)).pools[0]


def warned(fleet: Fleet) -> list[tuple[str, str | None]]:
    return [(warning.code, warning.pool) for warning in fleet.warnings]


def test_the_seed_becomes_two_pools() -> None:
    fleet = decode(SEED, there="/srv/models/llama3.1-8b-ins")

    kv = ("--kv-transfer-config", '{"kv_connector":"NixlConnector","kv_role":"kv_both"}')
    common = {"model": "/srv/models/llama3.1-8b-ins", "max_model_len": 16384, "gpu_memory_utilization": 0.85}
    assert fleet.pools == (
        Pool(name="VllmWorker", workers=3, gpus_per_worker=1, tensor_parallel_size=1, extra_args=kv, **common),
        Pool(name="PrefillWorker", first_gpu=3, extra_args=kv, **common),
    )


def test_the_seed_keeps_visible_what_means_nothing_today_and_what_dynamo_did_instead() -> None:
    fleet = decode(SEED, there="/srv/models/llama3.1-8b-ins")

    assert warned(fleet) == [
        ("dynamo-shared-gpus", "VllmWorker"),
        ("kv-connector-renamed", "VllmWorker"),
        ("key-without-meaning", "VllmWorker"),
        ("key-without-meaning", "VllmWorker"),
        ("key-without-meaning", "VllmWorker"),
        ("kv-connector-renamed", "PrefillWorker"),
        ("dynamo-unpinned", "PrefillWorker"),
    ]
    told = " ".join(warning.message for warning in fleet.warnings)
    assert all(key in told for key in ("remote-prefill", "conditional-disagg", "max-local-prefill-length"))


def test_numbers_in_quotes_are_numbers() -> None:
    fleet = decode(
        "VllmWorker:\n  model: org/m\n  gpu-memory-utilization: '0.5'\n  tensor-parallel-size: '2'\n"
        "  ServiceArgs: {workers: '2', resources: {gpu: '2'}}\n"
    )

    pool = fleet.pools[0]
    assert (pool.workers, pool.gpus_per_worker, pool.tensor_parallel_size, pool.gpu_memory_utilization) == (
        2,
        2,
        2,
        0.5,
    )


def test_underscores_and_hyphens_are_the_same_and_both_at_once_are_refused() -> None:
    assert the_pool("max_model_len: 4096").max_model_len == 4096

    error = refused(a_worker("max-model-len: 1\nmax_model_len: 2"))
    assert error.problems[0].code == "duplicate-name"


def test_common_configs_are_merged_and_the_services_own_value_wins() -> None:
    text = (
        "Common:\n  model: org/common\n  max-model-len: 100\n  block-size: 64\n"
        "A1Worker:\n  common-configs: [model, max-model-len, nothing]\n  max-model-len: 7\n"
    )

    fleet = decode(text)

    pool = fleet.pools[0]
    assert (pool.name, pool.model, pool.max_model_len, pool.extra_args) == ("A1Worker", "org/common", 7, ())
    assert ("common-key-missing", "A1Worker") in warned(fleet)


@pytest.mark.parametrize(
    "envs",
    ["{A: '1', B: true}", "[{name: A, value: '1'}, {name: B, value: true}]", "[{A: 1}, {B: true}]"],
)
def test_envs_come_in_three_shapes(envs: str) -> None:
    fleet = decode(f"VllmWorker:\n  model: org/m\n  ServiceArgs:\n    resources: {{gpu: 1}}\n    envs: {envs}\n")

    assert fleet.pools[0].env == {"A": "1", "B": "true"}


def test_cuda_visible_devices_becomes_the_list_of_gpus() -> None:
    fleet = decode(
        "VllmWorker:\n  model: org/m\n  ServiceArgs:\n    workers: 2\n    envs: [{CUDA_VISIBLE_DEVICES: '6,7'}]\n"
    )

    assert (fleet.pools[0].gpus, fleet.pools[0].env) == ((6, 7), {})
    assert ("env-became-gpus", "VllmWorker") in warned(fleet)


def test_flags_are_words_as_dynamo_made_them() -> None:
    pool = the_pool(
        "enforce-eager: true\ntrust-remote-code: false\nenable-prefix-caching: false\nblock-size: 64\n"
        "mm-processor-kwargs: {num_crops: 16}\nserved_model_name: tiny"
    )

    assert pool.extra_args == (
        "--enforce-eager",
        "--no-enable-prefix-caching",
        "--block-size",
        "64",
        "--mm-processor-kwargs",
        '{"num_crops":16}',
        "--served-model-name",
        "tiny",
    )


def test_a_connector_that_vllm_knows_stays_and_ranks_that_it_refuses_go() -> None:
    fleet = decode(a_worker('kv-transfer-config: \'{"kv_connector":"Other","kv_rank":0}\''))

    assert fleet.pools[0].extra_args == ("--kv-transfer-config", '{"kv_connector":"Other"}')
    assert warned(fleet) == [("key-without-meaning", "VllmWorker")]


def test_a_transfer_config_that_is_no_json_is_refused() -> None:
    assert "must be a JSON object" in str(refused(a_worker("kv-transfer-config: '{nixl'")))


def test_services_without_an_engine_stay_visible_and_are_no_pools() -> None:
    fleet = decode("Frontend:\n  model: org/m\n  port: 8000\nRouter:\n" + a_worker(""))

    assert [pool.name for pool in fleet.pools] == ["VllmWorker"]
    assert warned(fleet) == [("not-a-worker-service", "Frontend"), ("not-a-worker-service", "Router")]


def test_a_file_without_workers_is_refused_with_its_services() -> None:
    error = refused("Frontend:\n  message: hi\nBackend:\n  ServiceArgs: {resources: {cpu: '1'}}\n")

    assert "(services: Frontend, Backend)" in str(error)


@pytest.mark.parametrize(
    ("resources", "says"),
    [
        ("{gpu: 0.5}", "ServiceArgs.resources.gpu = 0.5: a part of a GPU is asked for by share"),
        ("{gpu: '0.5'}", "a part of a GPU"),
        ("{gpu: 0}", "ServiceArgs.resources.gpu = 0: must be at least 1"),
        ("{gpu: -1}", "ServiceArgs.resources.gpu = -1: must be from 0"),
        ("{gpu: true}", "must be a whole number, not true or false"),
        ("{gpu: many}", "must be a whole number, not text"),
        ("[gpu]", 'ServiceArgs.resources = ["gpu"]: must be a table'),
    ],
)
def test_gpus_that_cannot_be_are_refused_under_the_name_that_the_file_has(resources: str, says: str) -> None:
    error = refused(a_worker("", gpu=resources))

    assert says in str(error)
    assert error.problems[0].pool == "VllmWorker"


@pytest.mark.parametrize("text", ["VllmWorker: 5", "VllmWorker: [1]", "Common: 5\n" + a_worker("")])
def test_a_service_that_is_no_table_is_refused(text: str) -> None:
    assert refused(text).problems[0].code == "bad-value"


@pytest.mark.parametrize(
    "lines",
    ["nnodes: 2", "node-rank: 1", "data_parallel_size: 16\ndata_parallel_size_local: 8", "data-parallel-start-rank: 8"],
)
def test_a_service_over_several_hosts_is_refused(lines: str) -> None:
    error = refused(a_worker(lines))

    assert [problem.code for problem in error.problems] == ["several-hosts"]


def test_data_parallel_engines_of_one_host_are_counted() -> None:
    fleet = decode("VllmWorker:\n  model: org/m\n  data-parallel-size: 2\n  tensor-parallel-size: 2\n")
    wrong = refused(a_worker("data-parallel-size: 2", gpu="{gpu: 3}"))

    assert (fleet.pools[0].device_count, fleet.pools[0].allow_idle_gpus) == (4, False)
    assert [problem.code for problem in wrong.problems] == ["parallel-size-mismatch"]


def test_an_sglang_service_becomes_the_command_of_its_own_server() -> None:
    fleet = decode(
        "SGLangWorker:\n  model-path: org/m\n  tp: 2\n  skip-tokenizer-init: true\n  mem-fraction-static: 0.8\n"
        "  port: 30000\n  json-model-override-args: {a: 1}\n  ServiceArgs: {resources: {gpu: 2}}\n"
    )

    pool = fleet.pools[0]
    assert (pool.engine, pool.port, pool.gpu_memory_utilization, pool.tensor_parallel_size) == (
        "command",
        30000,
        0.8,
        2,
    )
    assert pool.command == (
        *("python3", "-m", "sglang.launch_server", "--model-path", "org/m", "--host", "127.0.0.1", "--port", "{port}"),
        *("--tp", "2", "--mem-fraction-static", "0.8", "--json-model-override-args", '{{"a":1}}'),
    )
    assert pool.ready_url == "http://127.0.0.1:{port}/health"
    assert [code for code, _ in warned(fleet)] == ["key-without-meaning", "engine-not-native"]


def test_a_tensorrt_service_becomes_trtllm_serve_with_its_engine_options() -> None:
    fleet = decode("TensorRTLLMWorker:\n  model-path: org/m\n  extra-engine-args: configs/a.yaml\n")

    assert fleet.pools[0].command == (
        *("trtllm-serve", "org/m", "--host", "127.0.0.1", "--port", "{port}"),
        *("--extra_llm_api_options", "/srv/configs/a.yaml"),
    )


def test_a_tensorrt_service_without_a_model_takes_what_the_frontend_serves_and_says_so() -> None:
    worker = "TensorRTLLMWorker:\n  engine_args: configs/a.yaml\n  ServiceArgs: {resources: {gpu: 1}}\n"

    fleet = decode("Frontend:\n  served_model_name: org/served\n" + worker)
    error = refused(worker)

    assert fleet.pools[0].command[:2] == ("trtllm-serve", "org/served")
    assert ("model-from-served-name", "TensorRTLLMWorker") in warned(fleet)
    assert [problem.code for problem in error.problems] == ["engine-not-supported"]


def test_an_encoder_is_imported_with_the_word_that_it_was_something_else() -> None:
    assert ("role-not-imported", "VllmEncodeWorker") in warned(decode(a_worker("", name="VllmEncodeWorker")))


def test_a_wrong_value_is_held_to_the_same_rules_as_in_a_fleet_file() -> None:
    error = refused(a_worker("gpu-memory-utilization: 1.2").replace("  gpu-memory-utilization: 0.9\n", ""))

    assert str(error) == (
        "disagg.yaml: service 'VllmWorker': gpu-memory-utilization = 1.2: must be greater than 0 and at most 1"
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("cuda-visible-device-ofset: 3", "--cuda-visible-device-ofset 3; did you mean cuda-visible-device-offset?"),
        ("gpu-memory-utilisation: 0.5", "--gpu-memory-utilisation 0.5; did you mean gpu-memory-utilization?"),
        ("remote-prefil: true", "--remote-prefil; did you mean remote-prefill?"),
    ],
)
def test_a_key_that_is_nearly_one_of_ours_is_passed_on_and_asked_about(line: str, said: str) -> None:
    fleet = decode(a_worker(line))

    assert [(one.code, one.message) for one in fleet.warnings] == [
        ("unknown-key-passed-on", f"service 'VllmWorker': passed on to vLLM: {said}")
    ]
    assert fleet.pools[0].extra_args[0] == f"--{line.partition(':')[0]}"


@pytest.mark.parametrize("line", ["data-parallel-size: 1", "enable-log-requests: true", "max-num-seqs: 4", "novel: 1"])
def test_options_of_vllm_itself_are_passed_on_without_a_word(line: str) -> None:
    assert [one for one in decode(a_worker(line)).warnings if one.code == "unknown-key-passed-on"] == []


def test_a_manifest_of_kubernetes_is_told_to_be_one() -> None:
    error = refused("apiVersion: nvidia.com/v1alpha1\nkind: DynamoGraphDeployment\nspec: {}")

    assert str(error).startswith('disagg.yaml: a Kubernetes manifest (kind "DynamoGraphDeployment"): not supported')
