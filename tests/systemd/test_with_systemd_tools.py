"""The shipped files as systemd's own tools read them, where they are installed. They need no running systemd."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.systemd

EXPOSURE_THRESHOLD = 30
"""Ten times the worst exposure that passes; the unit scored 2.6 on systemd 252."""


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian and Ubuntu: package systemd)")
    return path


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def host(tmp_path: Path, shipped: Path) -> Path:
    """A root directory with just enough in it to apply the shipped files to."""
    for folder, name in (("sysusers.d", "gpuward.sysusers.conf"), ("tmpfiles.d", "gpuward.tmpfiles.conf")):
        target = tmp_path / "usr/lib" / folder / "gpuward.conf"
        target.parent.mkdir(parents=True)
        shutil.copy(shipped / name, target)
    (tmp_path / "etc").mkdir()
    return tmp_path


def test_systemd_has_nothing_to_complain_about_the_unit(unit, tmp_path: Path) -> None:
    verify = tool("systemd-analyze")
    # verify looks for the program; whether it is installed here is no question of the unit.
    copy = tmp_path / "gpuward.service"
    copy.write_text(unit.path.read_text().replace("ExecStart=/usr/bin/gpuward run", "ExecStart=/bin/true run"))

    result = run(verify, "verify", "--man=no", copy)

    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_the_sandbox_leaves_the_unit_little_exposed(unit) -> None:
    analyze = tool("systemd-analyze")

    result = run(analyze, "security", "--offline=true", f"--threshold={EXPOSURE_THRESHOLD}", unit.path)
    if "unrecognized option" in result.stderr:
        pytest.skip("systemd-analyze security --offline needs systemd 250")

    assert result.returncode == 0, result.stdout.splitlines()[-1]


def test_sysusers_makes_the_user_a_member_of_the_operators(host: Path) -> None:
    sysusers = tool("systemd-sysusers")

    result = run(sysusers, f"--root={host}")

    assert result.returncode == 0, result.stderr
    groups = {line.split(":")[0]: line.split(":")[3] for line in (host / "etc/group").read_text().splitlines()}
    assert {"gpuward", "gpuctl", "video", "render"} <= groups.keys()
    assert groups["gpuctl"] == "gpuward"
    (user,) = [line for line in (host / "etc/passwd").read_text().splitlines() if line.startswith("gpuward:")]
    assert user.endswith(":/var/lib/gpuward:/usr/sbin/nologin")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories to gpuward")
def test_tmpfiles_makes_every_directory_with_its_mode(host: Path) -> None:
    tmpfiles = tool("systemd-tmpfiles")
    run(tool("systemd-sysusers"), f"--root={host}")

    result = run(tmpfiles, "--create", f"--root={host}", "gpuward.conf")

    assert result.returncode == 0, result.stderr
    made = ("run/gpuward", "var/lib/gpuward", "var/log/gpuward", "var/cache/gpuward/tmp", "etc/gpuward")
    modes = {path: oct((host / path).stat().st_mode & 0o7777) for path in made}
    private = dict.fromkeys(("var/lib/gpuward", "var/log/gpuward"), "0o700")
    assert modes == dict.fromkeys(made, "0o750") | private | {"etc/gpuward": "0o755"}
    groups = dict(line.split(":")[0:3:2] for line in (host / "etc/group").read_text().splitlines())
    assert (host / "run/gpuward").stat().st_gid == int(groups["gpuctl"])
