"""What is a secret, and that none is shown."""

from __future__ import annotations

import pytest

from gpuward.config.errors import ConfigError
from gpuward.config.fleet import Pool
from gpuward.config.fleet_file import decode_fleet_toml
from gpuward.config.secrets import is_secret, masked, masked_value, masked_words, secrets_of


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "VLLM_API_KEY",
        "api-key",
        "AWS_SECRET_ACCESS_KEY",
        "DB_PASSWORD",
        "token",
        "PGPASSWORD",
        "MINIMAX_API_KEY",
        "CHALLENGE_TOKEN",
    ],
)
def test_a_secret_is_known_by_its_name(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["max-num-batched-tokens", "ssl-keyfile", "TOKENIZERS_PARALLELISM", "tokenizer", "MONKEY", "KEYBOARD", "model"],
)
def test_a_name_that_only_looks_like_one_is_none(name: str) -> None:
    assert not is_secret(name)


def test_flags_are_masked_in_either_spelling_and_with_several_values() -> None:
    words = ["serve", "--api-key", "sk-1", "sk-2", "--hf-token=abc", "--port", "80"]

    assert masked_words(words) == ["serve", "--api-key", "***", "***", "--hf-token=***", "--port", "80"]


def test_tables_are_masked_inside() -> None:
    assert masked_value("pool", {"env": {"HF_TOKEN": "x", "A": "b"}, "extra-args": ["--api-key=x"]}) == {
        "env": {"HF_TOKEN": "***", "A": "b"},
        "extra-args": ["--api-key=***"],
    }


def test_values_of_a_pool_are_found_in_any_text_the_longer_first() -> None:
    pool = Pool(
        name="a", env={"HF_TOKEN": "hf_abc", "A_KEY": "hf_abcdef", "B": "open"}, extra_args=("--api-key", "sk-99")
    )

    assert masked("hf_abcdef hf_abc sk-99 open", secrets_of(pool)) == "*** *** *** open"


def test_values_with_equals_signs_and_assignments_in_words_are_found_whole() -> None:
    words = ("env", "HF_TOKEN=hf_a=b==", "A=open", "--api-key", "QUJDREVGRw==", "--auth-token=x=yz")
    pool = Pool(name="a", engine="command", command=words)

    assert masked_words(words) == ["env", "HF_TOKEN=***", "A=open", "--api-key", "***", "--auth-token=***"]
    assert masked("hf_a=b== QUJDREVGRw== x=yz open", secrets_of(pool)) == "*** *** *** open"


def test_a_refused_file_does_not_show_its_secrets() -> None:
    keys = 'workers = -1\nextra-args = ["--api-key", "sk-secret", "--port", "1"]\nhf-token = "sk-secret"\n'
    text = f'[pool.a]\nmodel = "m"\n{keys}'

    with pytest.raises(ConfigError) as refused:
        decode_fleet_toml(text, file="f.toml", directory="/")

    assert "--port" in str(refused.value)
    assert "sk-secret" not in str(refused.value)
