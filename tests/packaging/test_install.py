"""`gpuward install --systemd` into a directory: what it writes, keeps and takes away, and what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpuward.install import UNIT, CannotInstall, contents, install, own_program, plan_install, shipped_files

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).parent / "gpuward"
FILES = {
    "etc/systemd/system/gpuward.service",
    "etc/sysusers.d/gpuward.conf",
    "etc/tmpfiles.d/gpuward.conf",
    "etc/gpuward/gpuward.toml",
    "etc/gpuward/fleet.toml",
    "etc/gpuward/dynamo.yaml",
}
MEMORY = "etc/gpuward/.installed"


def gpuward(command: str, prefix: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = [PROGRAM, command, "--systemd", "--prefix", prefix, *more]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)


def actions(ran: subprocess.CompletedProcess[str]) -> dict[str, int]:
    assert ran.returncode == 0, ran.stderr
    words = [line.split()[0] for line in ran.stdout.partition("\n\n")[0].splitlines()]
    return {word: words.count(word) for word in words}


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_everything_is_put_in_place_readable_by_all(tmp_path: Path) -> None:
    ran = gpuward("install", tmp_path)

    assert actions(ran) == {"installed": len(FILES)}
    assert files_below(tmp_path) == FILES | {MEMORY}
    assert {(tmp_path / path).stat().st_mode & 0o777 for path in FILES} == {0o644}
    assert "systemctl enable --now gpuward" in ran.stdout
    assert "systemd-sysusers gpuward.conf" in ran.stdout


def test_the_unit_starts_the_program_that_installed_it(tmp_path: Path) -> None:
    gpuward("install", tmp_path)

    installed = (tmp_path / UNIT).read_text()
    shipped = (ROOT / "systemd/gpuward.service").read_text()
    assert f"\nExecStart={PROGRAM} run --config /etc/gpuward/gpuward.toml" in installed
    assert installed == shipped.replace("ExecStart=/usr/bin/gpuward", f"ExecStart={PROGRAM}")


def test_a_second_run_changes_nothing_and_says_so(tmp_path: Path) -> None:
    gpuward("install", tmp_path)
    before = {path: (tmp_path / path).stat().st_mtime_ns for path in FILES | {MEMORY}}

    ran = gpuward("install", tmp_path)

    assert actions(ran) == {"unchanged": len(FILES)}
    assert "Nothing to do." in ran.stdout
    assert {path: (tmp_path / path).stat().st_mtime_ns for path in before} == before


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    ran = gpuward("install", tmp_path / "root", "--dry-run")

    assert ran.stdout.count("would be installed") == len(FILES)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("edited", ["etc/gpuward/fleet.toml", UNIT])
def test_what_an_operator_has_changed_is_neither_overwritten_nor_removed(tmp_path: Path, edited: str) -> None:
    gpuward("install", tmp_path)
    (tmp_path / edited).write_text("# mine\n")

    again = gpuward("install", tmp_path)
    gone = gpuward("uninstall", tmp_path)

    assert actions(again) == {"unchanged": len(FILES) - 1, "kept": 1}
    assert f"kept       {tmp_path / edited} (changed here, not overwritten)" in again.stdout
    assert actions(gone)["kept"] == 1
    assert files_below(tmp_path) == {edited}
    assert (tmp_path / edited).read_text() == "# mine\n"


def test_a_config_that_was_there_before_the_first_install_is_kept(tmp_path: Path) -> None:
    config = tmp_path / "etc/gpuward/fleet.toml"
    config.parent.mkdir(parents=True)
    config.write_text("# before\n")

    ran = gpuward("install", tmp_path)

    assert actions(ran) == {"installed": len(FILES) - 1, "kept": 1}
    assert config.read_text() == "# before\n"


def test_uninstalling_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    gpuward("install", tmp_path)
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    (wants / "gpuward.service").symlink_to("/" + UNIT)

    first = gpuward("uninstall", tmp_path)
    second = gpuward("uninstall", tmp_path)

    assert actions(first) == {"removed": len(FILES) + 2}
    assert list(tmp_path.iterdir()) == []
    assert actions(second) == {"absent": len(FILES)}


def test_a_dry_uninstall_removes_nothing(tmp_path: Path) -> None:
    gpuward("install", tmp_path)

    ran = gpuward("uninstall", tmp_path, "--dry-run")

    assert ran.stdout.count("would be removed") == len(FILES) + 1
    assert files_below(tmp_path) == FILES | {MEMORY}


def test_an_upgrade_replaces_what_is_as_the_earlier_version_had_left_it(tmp_path: Path) -> None:
    old = contents(shipped_files(), Path("/opt/old/bin/gpuward"))
    install(tmp_path, old, plan_install(tmp_path, old))

    ran = gpuward("install", tmp_path)

    assert actions(ran) == {"replaced": 1, "unchanged": len(FILES) - 1}
    assert "systemctl restart gpuward" in ran.stdout
    assert f"ExecStart={PROGRAM} " in (tmp_path / UNIT).read_text()


def test_who_may_not_write_is_told_what_and_the_way_out() -> None:
    nobody_makes_directories_here = Path("/sys")

    ran = gpuward("install", nobody_makes_directories_here)

    assert ran.returncode == 1
    assert ran.stderr.startswith("gpuward: cannot write /sys/etc/gpuward/.installed: ")
    assert ran.stderr.endswith("permitted; run it as root, or with --prefix DIR\n") or "Permission denied" in ran.stderr


def test_a_path_that_a_unit_would_read_otherwise_is_refused() -> None:
    with pytest.raises(CannotInstall, match=r"cannot name /opt/my models/bin/gpuward in a unit"):
        contents(shipped_files(), Path("/opt/my models/bin/gpuward"))


def test_called_as_a_module_it_finds_its_program_in_the_environment() -> None:
    assert own_program("/somewhere/gpuward/__main__.py") == PROGRAM
