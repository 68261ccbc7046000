"""What a complaint tells to write is right, whatever was written before."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuward.config.errors import ConfigError
from gpuward.config.fleet_file import decode_fleet_toml

KEYS = ["extra-args", "gpus", "start-timeout-s", "max-model-len", "gpu-memory-utilization", "restart", "engine"]
TOLD = re.compile(r"; write (.+?)(?: \([^()]*\)| without quotes)?$")
OF_THE_TYPE = re.compile(r"not TOML|not (text|one string|long text)|must be (a list|a table|a number|a whole number)")


def complaint(line: str) -> str:
    try:
        decode_fleet_toml(f'[pool.p]\nmodel = "m"\n{line}\n', file="f", directory="/", path_exists=lambda _: True)
    except ConfigError as error:
        return error.problems[0].message
    return ""


@given(
    st.sampled_from(KEYS),
    st.from_regex(r"[0-9]{1,4}(\.[0-9])? ?(%|ms|s|m|h|d|k|K)?|[a-z\"'0-9, -]{1,20}|always|never", fullmatch=True)
    | st.text(st.characters(codec="utf-8"), max_size=20),
)
def test_what_is_told_to_be_written_is_of_the_right_type(key: str, text: str) -> None:
    told = TOLD.search(complaint(f"{key} = {json.dumps(text)}"))

    if told is not None and told[1].startswith(f"{key} = "):
        assert not OF_THE_TYPE.search(complaint(told[1])), told[1]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('extra-args = "--seed 5"', 'extra-args = ["--seed", "5"]'),
        ('gpus = "6 7"', "gpus = [6, 7]"),
        ('stop-timeout-s = "2 min"', "stop-timeout-s = 120"),
        ('restart = "never"', 'restart.mode = "never"'),
    ],
)
def test_what_is_told_to_be_written_is_taken(line: str, told: str) -> None:
    found = TOLD.search(complaint(line))

    assert found is not None
    assert found[1] == told
    assert complaint(told) == ""
