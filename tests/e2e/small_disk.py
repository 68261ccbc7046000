"""A small file system of its own, for tests of full disks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


class SmallDisk:
    """A file system of 512 KiB and 200 inodes of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=512k,nr_inodes=200", "tmpfs", path], capture_output=True, check=False
        )
        if mounted.returncode != 0:
            pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")

    def fill(self) -> None:
        """Leave neither a byte nor an inode."""
        with (self.path / "filler").open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    break
        for number in range(1000):
            try:
                (self.path / f"inode-{number}").touch()
            except OSError:
                return

    def clear(self) -> None:
        for path in (self.path / "filler", *self.path.glob("inode-*")):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Take the file system away."""
        subprocess.run(["umount", "--lazy", self.path], check=True)
