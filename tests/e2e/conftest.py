"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.e2e.daemon import DaemonUnderTest


@pytest.fixture
def daemon() -> Iterator[DaemonUnderTest]:
    """A daemon on a simulated host with 8 H100; not started yet."""
    under_test = DaemonUnderTest()
    yield under_test
    under_test.close()
