"""What every provider promises: simulated GPUs, and NVML through the real binding on a fake driver."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from gpuward.host.gpus import GpuProvider, NvmlGpus
from gpuward.policy.inventory import Vitals
from gpuward.sim.driver import DriverGpu, FakeDriver, binding_to
from gpuward.sim.gpus import SimulatedGpus

GIB = 1024**3

Host = Callable[[Mapping[int, int]], GpuProvider]
"""Makes a provider of three GPUs on which this process holds bytes, by index."""


def simulated_host(directory: Path) -> Host:
    def make(held: Mapping[int, int]) -> GpuProvider:
        provider = SimulatedGpus("2xH100-80GB,1xL40S-48GB", directory)
        claim = "".join(f"{index} {share}\n" for index, share in held.items())
        (directory / str(os.getpid())).write_text(claim)
        return provider

    return make


def nvml_host(_: Path) -> Host:
    def make(held: Mapping[int, int]) -> GpuProvider:
        gpus = [DriverGpu(f"GPU-{index}", f"00000000:{0x1B + index:02x}:00.0", mig=0) for index in range(3)]
        for index, share in held.items():
            gpus[index].compute = [(os.getpid(), share)]
            gpus[index].free_bytes -= share
        in_nvml_order = [gpus[2], gpus[0], gpus[1]]
        return NvmlGpus(binding_to(FakeDriver(*in_nvml_order)))

    return make


@pytest.fixture(params=[simulated_host, nvml_host], ids=["simulated", "nvml"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    make: Host = request.param(tmp_path)
    return make


def test_gpus_come_in_pci_order_numbered_by_rank(host: Host) -> None:
    snapshot = host({}).snapshot()

    assert [gpu.index for gpu in snapshot.gpus] == [0, 1, 2]
    assert [gpu.pci_bus_id for gpu in snapshot.gpus] == sorted(gpu.pci_bus_id for gpu in snapshot.gpus)
    assert all(gpu.pci_bus_id == gpu.pci_bus_id.upper() for gpu in snapshot.gpus)


def test_a_snapshot_says_where_it_comes_from_and_that_it_is_good(host: Host) -> None:
    provider = host({})

    snapshot = provider.snapshot()

    assert (snapshot.provider, snapshot.state, snapshot.reason) == (provider.provider, "ok", "")
    assert snapshot.driver


def test_used_is_what_is_neither_free_nor_reserved(host: Host) -> None:
    gpu = host({1: 30 * GIB}).snapshot().gpus[1]

    assert gpu.used_bytes == 30 * GIB
    assert gpu.reserved_bytes
    assert gpu.total_bytes == gpu.used_bytes + (gpu.free_bytes or 0) + gpu.reserved_bytes


def test_a_process_is_listed_on_its_gpus_only_with_bytes_and_name(host: Host) -> None:
    snapshot = host({0: 2 * GIB, 2: 3 * GIB}).snapshot()

    shares = [[(process.pid, process.used_bytes) for process in gpu.processes] for gpu in snapshot.gpus]
    assert shares == [[(os.getpid(), 2 * GIB)], [], [(os.getpid(), 3 * GIB)]]
    assert snapshot.gpus[0].processes[0].name


def test_identities_are_the_same_in_every_round(host: Host) -> None:
    provider = host({})

    first, second = provider.snapshot(), provider.snapshot()

    assert [gpu.uuid for gpu in first.gpus] == [gpu.uuid for gpu in second.gpus]
    assert len({gpu.uuid for gpu in first.gpus}) == 3
    assert second.taken_at_s >= first.taken_at_s


def test_a_closed_provider_opens_again_when_asked(host: Host) -> None:
    provider = host({})
    provider.snapshot()

    provider.close()

    assert len(provider.snapshot().gpus) == 3


def test_a_quiet_gpu_tells_its_vitals_and_asks_for_nothing(host: Host) -> None:
    gpu = host({0: GIB}).snapshot().gpus[0]

    assert gpu.vitals == Vitals(
        busy_percent=0,
        temperature_c=33,
        power_w=gpu.vitals.power_w,
        throttled_by=(),
        ecc_uncorrected=0,
        rows_pending=False,
        rows_failed=False,
        recovery="",
        compute_mode="default",
        mig=False,
    )
    assert 50 < (gpu.vitals.power_w or 0) < 200
    assert gpu.settling is False
