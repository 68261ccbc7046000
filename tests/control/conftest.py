"""Fixtures of the tests of the control socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.control.served import Rude, Served

from gpuward.control.client import Client


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "c.sock")
    yield served
    served.close()


@pytest.fixture
def rude(served: Served) -> Iterator[Rude]:
    rude = Rude(served.path)
    yield rude
    rude.close()


@pytest.fixture
def polite(served: Served) -> Iterator[Client]:
    with Client(served.path, timeout_s=5) as polite:
        yield polite
