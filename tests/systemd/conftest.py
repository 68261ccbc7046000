"""The shipped systemd files, and a reader for units: a key may come several times, so configparser will not do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

SHIPPED = Path(__file__).parents[2] / "systemd"


@dataclass(frozen=True)
class Unit:
    """A unit file: its path, and (section, key, value) in file order."""

    path: Path
    lines: tuple[tuple[str, str, str], ...]

    def values(self, section: str, key: str) -> list[str]:
        return [value for at, name, value in self.lines if (at, name) == (section, key)]


def read_unit(path: Path) -> Unit:
    section, lines = "", []
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            lines.append((section, key, value))
    return Unit(path, tuple(lines))


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The folder of the shipped systemd files."""
    return SHIPPED


@pytest.fixture(scope="session")
def unit() -> Unit:
    """gpuward.service as shipped."""
    return read_unit(SHIPPED / "gpuward.service")
