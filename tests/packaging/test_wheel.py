"""What `pip install .` would install: built without network or isolation, looked into, and run."""

from __future__ import annotations

import configparser
import email
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import gpuward

ROOT = Path(__file__).parents[2]
DIST_INFO = f"gpuward-{gpuward.__version__}.dist-info"


def build(kind: str, folder: Path) -> Path:
    """Build "wheel" or "sdist" of the tree into ``folder`` with the installed hatchling; return its path."""
    code = f"import sys; from hatchling.build import build_{kind} as build; print(build(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return folder / built.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def entry_points(wheel: zipfile.ZipFile) -> dict[str, str]:
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read(f"{DIST_INFO}/entry_points.txt").decode())
    return dict(parser["console_scripts"])


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed into it, its dependencies being those of this interpreter."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "-qq", "--no-index", "--no-deps", "--no-compile", "--target"]
    subprocess.run([*command, target, str(wheel.filename)], timeout=60, check=True)
    return target


def test_the_wheel_holds_the_package_and_its_metadata_and_nothing_else(wheel) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}

    assert tops == {"gpuward", DIST_INFO}
    assert not [name for name in wheel.namelist() if "/tests/" in name or name.endswith((".pyc", ".so"))]


def test_the_wheel_holds_every_module_of_the_tree(wheel) -> None:
    modules = {str(path.relative_to(ROOT / "daemon")) for path in (ROOT / "daemon/gpuward").rglob("*.py")}

    packed = {name for name in wheel.namelist() if name.endswith(".py")}

    assert packed == modules


def test_the_wheel_says_that_it_is_typed(wheel) -> None:
    assert "gpuward/py.typed" in wheel.namelist()


@pytest.mark.parametrize("folder", ["systemd", "etc"])
def test_the_wheel_carries_the_files_that_an_operator_copies(wheel, folder: str) -> None:
    shipped = {f"gpuward/share/{folder}/{path.name}": path.read_bytes() for path in (ROOT / folder).iterdir()}

    carried = {name: wheel.read(name) for name in wheel.namelist() if name.startswith(f"gpuward/share/{folder}/")}

    assert carried == shipped


def test_the_version_comes_from_one_place(wheel) -> None:
    metadata = email.message_from_bytes(wheel.read(f"{DIST_INFO}/METADATA"))

    assert (metadata["Name"], metadata["Version"]) == ("gpuward", gpuward.__version__)
    assert "version" not in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_entry_points_are_the_daemon_and_its_client(wheel, entry_points) -> None:
    modules = {target.split(":")[0].replace(".", "/") + ".py" for target in entry_points.values()}

    assert entry_points.keys() == {"gpuward", "gpuctl"}
    assert modules <= set(wheel.namelist())


@pytest.mark.parametrize("program", ["gpuward", "gpuctl"])
def test_an_installed_program_runs_outside_the_source_tree(installed: Path, tmp_path: Path, program: str) -> None:
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"}

    # PYTHONPATH comes before an editable install of the tree, so what runs is the wheel.
    shown = subprocess.run(
        [installed / "bin" / program, "--help"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip

    assert shown.returncode == 0, shown.stderr
    assert f"usage: {program}" in shown.stdout


def test_an_installed_package_brings_the_files_that_it_installs(installed: Path, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"}
    program = installed / "bin/gpuward"

    ran = subprocess.run(
        [program, "install", "--systemd", "--prefix", tmp_path],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    assert f"ExecStart={program} run" in (tmp_path / "etc/systemd/system/gpuward.service").read_text()
    assert (tmp_path / "etc/gpuward/fleet.toml").read_bytes() == (ROOT / "etc/fleet.toml").read_bytes()


def test_a_source_archive_has_what_the_wheel_is_made_of(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {"pyproject.toml", "LICENSE", "README.md", "etc/fleet.toml", "systemd/gpuward.service"} <= names
    assert "daemon/gpuward/py.typed" in names
