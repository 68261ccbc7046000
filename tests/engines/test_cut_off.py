"""A drain that the engine is not told of is said at plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuward.config.fleet import Pool
from gpuward.engines.cut_off import cut_off
from gpuward.engines.launch import HostContext
from gpuward.plan_locally import plan_locally

HOST = HostContext(python="/nowhere/bin/python", simulated=False, inherited_env={})
SIMULATED = HostContext(python="/nowhere/bin/python", simulated=True, inherited_env={})


def a_vllm(root: Path, version: str | None) -> str:
    """An executable, and in its environment the files of a vLLM of that version."""
    program = root / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    packages = root / "lib/python3.12/site-packages"
    packages.mkdir(parents=True)
    if version is not None:
        (packages / f"vllm-{version}.dist-info").mkdir()
        (packages / f"vllm-{version}.dist-info" / "METADATA").write_text(f"Name: vllm\nVersion: {version}\n")
    return str(program)


def test_a_version_that_is_unknown_gets_no_drain_and_the_plan_says_so(tmp_path: Path) -> None:
    program = a_vllm(tmp_path, None)

    (warning,) = cut_off([Pool(name="m", model="x", executable=program, drain_timeout_s=60)], HOST)

    assert (warning.code, warning.pool) == ("drain-not-passed", "m")
    assert warning.message == (
        "pool 'm': drain-timeout-s = 60 does not reach vLLM, requests are cut on stop: "
        "no --shutdown-timeout is passed, "
        f'the version of {program} is unknown; if it is 0.18.0 or later, put "--shutdown-timeout", "60" into '
        "extra-args instead of the key"
    )


def test_a_version_that_has_no_drain_is_named(tmp_path: Path) -> None:
    program = a_vllm(tmp_path, "0.17.1")

    (warning,) = cut_off([Pool(name="m", model="x", executable=program, drain_timeout_s=60)], HOST)

    assert f"{program} is 0.17.1, --shutdown-timeout came with 0.18.0; install that or a later one" in warning.message


@pytest.mark.parametrize(
    ("pool", "host", "version"),
    [
        (Pool(name="m", model="x", drain_timeout_s=60), HOST, "0.18.0"),
        (Pool(name="m", model="x"), HOST, None),
        (Pool(name="m", model="x", drain_timeout_s=0), HOST, None),
        (Pool(name="m", model="x", extra_args=("--shutdown-timeout", "60")), HOST, None),
        (Pool(name="m", engine="command", command=("x",), drain_timeout_s=60), HOST, None),
        (Pool(name="m", engine="simulated", drain_timeout_s=60), HOST, None),
    ],
    ids=["a version that has it", "no key", "no drain wanted", "in extra-args", "a command", "simulated"],
)
def test_nothing_is_said_otherwise(tmp_path: Path, pool: Pool, host: HostContext, version: str | None) -> None:
    program = a_vllm(tmp_path, version)
    named = pool if pool.engine != "vllm" else Pool(**{**fields_of(pool), "executable": program})

    assert list(cut_off([named], host)) == []


def fields_of(pool: Pool) -> dict[str, object]:
    return {name: getattr(pool, name) for name in pool.__struct_fields__}


def test_on_a_simulated_host_the_simulated_vllm_has_it() -> None:
    assert list(cut_off([Pool(name="m", model="x", drain_timeout_s=60)], SIMULATED)) == []


def test_gpuctl_plan_on_the_host_itself_warns_and_for_a_simulated_one_does_not(tmp_path: Path) -> None:
    text = f'[pool.m]\nmodel = "org/m"\nexecutable = "{a_vllm(tmp_path, None)}"\ndrain-timeout-s = 60\n'
    file = {"text": text, "name": "fleet.toml", "directory": str(tmp_path)}

    here = plan_locally(file, simulate=None)  # type: ignore[arg-type]
    there = plan_locally(file, simulate="1xH100-80GB")  # type: ignore[arg-type]

    assert "drain-not-passed" in {one["code"] for one in here["warnings"]}
    assert "drain-not-passed" not in {one["code"] for one in there["warnings"]}
