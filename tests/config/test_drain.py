"""How long a worker may finish what it has begun, and when SIGKILL follows."""

from __future__ import annotations

import pytest

from gpuward.config.drain import drain_s, grace_s
from gpuward.config.errors import ConfigError
from gpuward.config.fleet import Pool
from gpuward.config.fleet_file import decode_fleet_toml


@pytest.mark.parametrize(
    ("keys", "drain", "grace"),
    [
        ({}, 30, 40.0),
        ({"drain_timeout_s": 120}, 120, 130.0),
        ({"drain_timeout_s": 0}, 0, 10.0),
        ({"stop_timeout_s": 60.0}, 30, 60.0),
        ({"stop_timeout_s": 30.0}, 20, 30.0),
        ({"stop_timeout_s": 5.0}, 2, 5.0),
        ({"extra_args": ("--shutdown_timeout=50",)}, 50, 60.0),
        ({"extra_args": ("--shutdown-timeout", "7"), "stop_timeout_s": 8.0}, 7, 8.0),
        ({"engine": "command", "command": ("x",)}, 30, 30.0),
        ({"engine": "command", "command": ("x",), "drain_timeout_s": 90}, 90, 90.0),
        ({"engine": "command", "command": ("x",), "stop_timeout_s": 1.0}, 0, 1.0),
    ],
)
def test_sigkill_follows_from_the_drain(keys: dict[str, object], drain: int, grace: float) -> None:
    pool = Pool(name="m", model="m", **keys)  # type: ignore[arg-type]

    assert (drain_s(pool), grace_s(pool)) == (drain, grace)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("drain-timeout-s = 60\nstop-timeout-s = 30", "drain (drain-timeout-s = 60); write at least 70"),
        (
            "stop-timeout-s = 30\nextra-args = ['--shutdown-timeout', '60']",
            "(--shutdown-timeout = 60); write at least 70",
        ),
        ("drain-timeout-s = 60\nextra-args = ['--shutdown-timeout=60']", "keep one of the two"),
        ("extra-args = ['--shutdown-timeout=soon']", "must be whole seconds"),
        ("drain-timeout-s = -1", "drain-timeout-s = -1"),
    ],
)
def test_a_drain_that_sigkill_would_cut_is_refused_with_the_way_out(keys: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        decode_fleet_toml(f"[pool.m]\nmodel = 'org/m'\n{keys}\n", file="f", directory="/")

    assert said in str(refused.value)
