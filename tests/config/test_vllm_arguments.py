"""Words of vLLM's command line, in all the ways in which vLLM takes them."""

from __future__ import annotations

import pytest

from gpuward.config.fleet import Pool
from gpuward.config.vllm_arguments import data_parallel_engines, flag_of, option, options


@pytest.mark.parametrize(
    ("word", "flag"),
    [
        ("--max-model-len", "--max-model-len"),
        ("--max_model_len=256", "--max-model-len"),
        ("--max-model", "--max-model-len"),
        ("--tensor-parallel", "--tensor-parallel-size"),
        ("--gpu_memory_util=0.3", "--gpu-memory-utilization"),
        ("-tp", "--tensor-parallel-size"),
        ("-tp2", "--tensor-parallel-size"),
        ("-tp=2", "--tensor-parallel-size"),
        ("-dp2", "--data-parallel-size"),
        ("--data-parallel-size", "--data-parallel-size"),
        ("--model", "--model"),
        ("--max-num", "--max-num"),
        ("--kv-transfer-config.kv_role=x", "--kv-transfer-config.kv_role"),
        ("--of-the-future", "--of-the-future"),
        ("-1", ""),
        ("-0.5", ""),
        ("org/model", ""),
        ('{"a_b": 1}', ""),
    ],
)
def test_a_word_is_the_flag_that_vllm_takes_it_for(word: str, flag: str) -> None:
    assert flag_of(word) == flag


def test_values_stand_behind_a_flag_in_it_or_glued_to_it() -> None:
    words = ("--served_model_name", "a", "b", "-tp2", "--seed=-1", "--api-key", "k", "--enforce-eager")

    assert options(words) == {
        "--served-model-name": ("a", "b"),
        "--tensor-parallel-size": ("2",),
        "--seed": ("-1",),
        "--api-key": ("k",),
        "--enforce-eager": (),
    }
    assert (option(words, "--served-model-name"), option(words, "--enforce-eager")) == ("a", None)


@pytest.mark.parametrize(
    ("words", "engines"),
    [
        ((), 1),
        (("--data-parallel-size", "4"), 4),
        (("--data_parallel_size=2",), 2),
        (("-dp", "2"), 2),
        (("-dp", "8", "-dpl", "2"), 2),
        (("--data-parallel-size", "8", "--data-parallel-rank", "3"), 1),
        (("-dp", "many"), 1),
    ],
)
def test_engines_of_one_worker(words: tuple[str, ...], engines: int) -> None:
    assert data_parallel_engines(words) == engines


def test_gpus_of_a_worker_are_for_all_its_engines() -> None:
    asked = Pool(name="m", tensor_parallel_size=2, extra_args=("--data-parallel-size", "2"))
    given = Pool(name="m", gpus_per_worker=4, extra_args=("-dp2",))

    assert (asked.device_count, asked.tensor_size) == (4, 2)
    assert (given.device_count, given.tensor_size) == (4, 2)
