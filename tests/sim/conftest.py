"""What the tests of the simulated worker share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sim.simulated_worker import Start, Worker

from gpuward.sim.gpus import SimulatedGpus


@pytest.fixture
def gpus(tmp_path: Path) -> SimulatedGpus:
    return SimulatedGpus("4xH100-80GB", tmp_path / "claims")


@pytest.fixture
def start(gpus: SimulatedGpus) -> Iterator[Start]:
    workers: list[Worker] = []

    def make(*words: str, **environment: str) -> Worker:
        workers.append(Worker(gpus, list(words), environment))
        return workers[-1]

    yield make
    for worker in workers:
        worker.destroy()
