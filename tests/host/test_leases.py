"""Where GPU leases lie."""

from __future__ import annotations

from pathlib import Path

from gpuward.host.leases import Leases


def test_a_lease_is_taken_in_every_place_that_is_there_or_can_be_made(tmp_path: Path) -> None:
    barred = tmp_path / "file" / "leases"
    (tmp_path / "file").touch()
    made, own = tmp_path / "host", tmp_path / "run" / "leases"

    leases = Leases(own, (barred, made))

    assert leases.paths("GPU-0") == (f"{made}/GPU-0.lock", f"{own}/GPU-0.lock")
    assert made.stat().st_mode & 0o7777 == 0o1777
    assert own.is_dir()
    assert leases.trouble() == ""


def test_a_place_that_is_a_link_is_none(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "host").symlink_to(tmp_path / "theirs")

    leases = Leases(tmp_path / "own", (tmp_path / "host",))

    assert leases.paths("GPU-0") == (f"{tmp_path}/own/GPU-0.lock",)
    assert f"neither {tmp_path}/host can be used" in leases.trouble()
