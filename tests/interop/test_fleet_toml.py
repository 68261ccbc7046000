"""Fleets written as TOML: read again, they are the same fleet."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuward.config.fleet import Fleet, Pool, Remark, RestartPolicy
from gpuward.interop.fleet_files import decode_fleet, is_yaml
from gpuward.interop.fleet_toml import fleet_to_toml

ROOT = Path(__file__).parents[2]
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=20)
WORDS = TEXT.filter(str.strip).map(lambda text: text.replace("{", "{{").replace("}", "}}"))
FLAGS = WORDS.filter(lambda word: not word.startswith("-"))
SECONDS = st.floats(0.5, 1000.0)


@st.composite
def pools(draw: st.DrawFn, name: str) -> Pool:
    engine = draw(st.sampled_from(("vllm", "simulated", "command")))
    command = ("/bin/sleep", *draw(st.lists(WORDS, max_size=3))) if engine == "command" else ()
    gpus_per_worker = draw(st.sampled_from((None, 1, 2, 8) if engine != "command" else (None, 0, 2)))
    return Pool(
        name=name,
        engine=engine,
        model=draw(st.sampled_from(("org/model", '/srv/a "quoted" model'))) if engine != "command" else None,
        workers=draw(st.integers(0, 5)),
        gpus_per_worker=gpus_per_worker,
        gpu_memory_utilization=draw(st.sampled_from((0.9, 0.5, 1.0))) if gpus_per_worker != 0 else 0.9,
        tensor_parallel_size=draw(st.none() | st.integers(1, 4)),
        max_model_len=draw(st.none() | st.integers(1, 10**6)) if engine != "command" else None,
        gpus=draw(st.sampled_from(((), (0, 1), ("GPU-a", 3)))) if gpus_per_worker != 0 else (),
        share=draw(st.booleans()),
        pin=draw(st.sampled_from(("index", "uuid"))),
        port=draw(st.none() | st.integers(1, 60000)),
        env=draw(st.dictionaries(st.text(string.ascii_uppercase, min_size=1, max_size=5), TEXT, max_size=2)),
        extra_args=tuple(draw(st.lists(FLAGS, max_size=2))),
        start_timeout_s=draw(SECONDS),
        restart=RestartPolicy(mode=draw(st.sampled_from(("always", "never"))), max_failures=draw(st.integers(0, 9))),
        command=command,
        ready_after_s=draw(st.none() | SECONDS) if engine == "command" else None,
    )


@settings(max_examples=200, deadline=None)
@given(pools("a"), pools("b-2.x"), TEXT)
def test_what_is_written_reads_as_the_same_pools(first: Pool, second: Pool, sentence: str) -> None:
    fleet = Fleet(pools=(first, second), warnings=(Remark(code="x", pool=None, message=sentence),))

    again = decode_fleet(fleet_to_toml(fleet), file="f.toml", directory="/srv", path_exists=lambda path: path[0] == "/")

    assert again.pools == fleet.pools or relocated(again) == fleet.pools


def relocated(fleet: Fleet) -> tuple[Pool, ...]:
    """Every path exists here, so that a hub name is taken for one; undo that."""
    from msgspec.structs import replace

    return tuple(replace(pool, model="org/model") if pool.model == "/srv/org/model" else pool for pool in fleet.pools)


def test_the_shipped_dynamo_example_says_in_toml_what_it_said_in_yaml() -> None:
    text = (ROOT / "etc" / "dynamo.yaml").read_text(encoding="utf-8")
    fleet = decode_fleet(text, file="dynamo.yaml", directory="/srv", path_exists=lambda _: False)

    written = fleet_to_toml(fleet)

    assert decode_fleet(written, file="f.toml", directory="/srv", path_exists=lambda _: False).pools == fleet.pools
    for warning in fleet.warnings:
        assert f"# {warning.code}: " in written
    assert "gpu-memory-utilization = 0.85" in written


def test_a_utilization_that_was_implied_is_stated_from_then_on() -> None:
    assert "gpu-memory-utilization = 0.9" in fleet_to_toml(Fleet(pools=(Pool(name="a", model="m"),)))


def test_keys_at_their_default_are_left_out() -> None:
    written = fleet_to_toml(Fleet(pools=(Pool(name="a", model="m"),)))

    assert written == '[pool.a]\nengine = "vllm"\nmodel = "m"\nworkers = 1\ngpu-memory-utilization = 0.9\n'


@pytest.mark.parametrize(
    ("file", "text", "yaml"),
    [
        ("f.toml", "A:\n", False),
        ("f.YAML", "[pool.a]", True),
        ("f.yml", "", True),
        ("fleet", "# note\n\n[pool.a]\n", False),
        ("fleet", "\nVllmWorker:\n  model: m\n", True),
        ("fleet", 'pool.a.model = "m"', False),
        ("fleet", "Common: {a: b}", True),
        ("fleet", "", False),
    ],
)
def test_the_name_tells_the_format_and_without_one_the_first_line(file: str, text: str, yaml: bool) -> None:
    assert is_yaml(text, file) == yaml
