"""Stories of two daemons on one host: a user's own beside the service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.daemon import DaemonUnderTest

from gpuward.host.leases import HOST_PLACES

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[3]

FAKE = """
import sys
from tests.host.fake_driver import DriverGpu, FakeDriver, binding_to

sys.modules["pynvml"] = binding_to(FakeDriver(DriverGpu("GPU-{root}", "00000000:10:00.0")))
"""

ON_ONE_GPU = """
[pool.m]
engine = "command"
command = ["/bin/sleep", "100"]
gpus = [0]
gpu-memory-utilization = 0.3
ready-after-s = 0.1
"""


@pytest.fixture
def two() -> Iterator[tuple[DaemonUnderTest, DaemonUnderTest]]:
    """Two daemons with directories of their own on one (fake) NVIDIA GPU."""
    pair = DaemonUnderTest(simulate=None), DaemonUnderTest(simulate=None)
    site = pair[0].root / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(FAKE.format(root=pair[0].root.name))
    for daemon in pair:
        daemon.environment["PYTHONPATH"] = f"{site}:{ROOT}"
    yield pair
    for daemon in reversed(pair):
        daemon.close()
    for place in HOST_PLACES:
        (place / f"GPU-{pair[0].root.name}.lock").unlink(missing_ok=True)


def test_two_daemons_of_a_host_never_share_a_gpu_exclusively(two: tuple[DaemonUnderTest, DaemonUnderTest]) -> None:
    first, second = two
    first.start(ON_ONE_GPU)
    first.all_ready()

    second.start(ON_ONE_GPU)
    waits = second.until("m/0", lambda worker: "lease" in worker["reason"])
    first.ctl("stop", "m/0")

    assert not waits["ready"]
    assert "is held by another run or another daemon" in waits["reason"]
    second.until("m/0", lambda worker: worker["ready"])
