"""Whatever a file holds, the answer is a fleet or a ConfigError: never another exception, never half a fleet."""

from __future__ import annotations

import tomli_w
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from gpuward.config.errors import ConfigError
from gpuward.config.fleet import Fleet, Pool, RestartPolicy
from gpuward.interop.dynamo.keys import ENGINE_MARKS, OWN_FIELDS, WITHOUT_MEANING
from gpuward.interop.fleet_files import decode_fleet
from gpuward.interop.fleet_toml import fleet_to_toml

SCALARS = (
    st.booleans()
    | st.integers(-5, 20)
    | st.sampled_from((2**70, -(2**70), float("nan"), float("inf"), 0.5, 1.0, 1e300))
    | st.sampled_from(
        ("", "a", "b", "vllm", "command", "simulated", "always", "{port}", "{", "(", "/x", "~nobody/x", "0")
    )
    | st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=6,
)
NAMES = st.sampled_from(("a", "b", "VllmWorker", "SGLangWorker", "TensorRTLLMWorker", "Common", "", "a/b"))
POOL_KEYS = st.sampled_from([info.encode_name for info in structs.fields(Pool)])
RESTART_KEYS = st.sampled_from([info.encode_name for info in structs.fields(RestartPolicy)])
POOLS = st.dictionaries(POOL_KEYS, VALUES, max_size=5) | st.fixed_dictionaries(
    {"model": st.just("m"), "restart": st.dictionaries(RESTART_KEYS, VALUES, max_size=3)}
)
TOML_FILES = st.fixed_dictionaries(
    {"pool": st.dictionaries(NAMES, POOLS | VALUES, max_size=3)},
    optional={"defaults": POOLS | VALUES, "other": VALUES},
)
SERVICE_KEYS = st.sampled_from(
    [*OWN_FIELDS, *ENGINE_MARKS, *WITHOUT_MEANING, "common-configs", "nnodes", "data_parallel_size", "tp", "dp-size"]
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "workers": VALUES,
        "resources": VALUES | st.fixed_dictionaries({"gpu": VALUES}),
        "envs": VALUES | st.lists(st.fixed_dictionaries({"name": VALUES, "value": VALUES}), max_size=2),
        "other": VALUES,
    },
)
SERVICES = st.builds(
    lambda keys, arguments: {**keys, "ServiceArgs": arguments},
    st.dictionaries(SERVICE_KEYS, VALUES, max_size=5),
    ARGUMENTS | VALUES,
)
YAML_FILES = st.dictionaries(NAMES, SERVICES | VALUES, max_size=3)


def answer(text: str, file: str) -> Fleet | None:
    try:
        return decode_fleet(text, file=file, directory="/srv", path_exists=lambda _: False)
    except ConfigError as error:
        refusal = error
    assert refusal.problems
    assert len(str(refusal).splitlines()) == len(refusal.problems)
    return None


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200), st.sampled_from(("f.toml", "f.yaml", "f")))
@example("\ufeff[pool.a]", "f.toml")
@example("\r", "f.yaml")
def test_any_text_is_a_fleet_or_refused(text: str, file: str) -> None:
    answer(text, file)


@settings(max_examples=400, deadline=None)
@given(TOML_FILES)
def test_any_toml_of_known_keys_is_a_fleet_or_refused_in_as_many_lines_as_problems(document: dict[str, object]) -> None:
    fleet = answer(tomli_w.dumps(document), "f.toml")

    assert fleet is None or fleet.pools


@settings(max_examples=400, deadline=None)
@given(YAML_FILES)
def test_any_yaml_of_known_keys_is_a_fleet_or_refused_and_its_toml_reads_again(document: dict[str, object]) -> None:
    fleet = answer(yaml.safe_dump(document), "f.yaml")

    if fleet is not None:
        again = answer(fleet_to_toml(fleet), "f.toml")
        assert again is not None
        assert again.pools == fleet.pools
