"""What every provider promises: simulated GPUs, and NVML through the real binding on a fake driver."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.host.fake_driver import DriverGpu, FakeDriver, binding_to

from gpuward.host.gpus import GpuProvider, NvmlGpus
from gpuward.policy.gpus.inventory import UNKNOWN_VITALS, Vitals
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


@dataclass
class Faulty:
    """A provider of two GPUs on which this process has 1 GiB each, and ways to break one."""

    provider: GpuProvider
    lose: Callable[[int], None]
    heat: Callable[[int, int], None]
    set_compute_mode: Callable[[int, int], None]
    set_mig: Callable[[int, bool], None]


@pytest.fixture(params=["simulated", "nvml"])
def faulty(request: pytest.FixtureRequest, tmp_path: Path) -> Faulty:
    if request.param == "simulated":
        simulated = SimulatedGpus("2xH100-80GB", tmp_path)
        (tmp_path / str(os.getpid())).write_text(f"0 {GIB}\n1 {GIB}\n")
        return Faulty(
            simulated,
            simulated.lose,
            simulated.heat,
            simulated.set_compute_mode,
            lambda index, on: simulated.set_mig(index, on=on),
        )
    gpus = [DriverGpu(f"GPU-{index}", f"00000000:{0x1B + index:02x}:00.0") for index in range(2)]
    for gpu in gpus:
        gpu.compute = [(os.getpid(), GIB)]

    def lose(index: int) -> None:
        gpus[index].error = 15

    def heat(index: int, degrees_c: int) -> None:
        gpus[index].temperature_c, gpus[index].throttles = degrees_c, 0x40 if degrees_c >= 90 else 0

    def set_compute_mode(index: int, mode: int) -> None:
        gpus[index].compute_mode = mode

    def set_mig(index: int, on: bool) -> None:
        gpus[index].mig = int(on)

    return Faulty(NvmlGpus(binding_to(FakeDriver(*gpus))), lose, heat, set_compute_mode, set_mig)


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


def test_a_lost_gpu_keeps_its_place_and_size_and_tells_nothing_else(faulty: Faulty) -> None:
    before = faulty.provider.snapshot().gpus

    faulty.lose(0)
    lost, other = faulty.provider.snapshot().gpus

    assert (lost.index, lost.uuid, lost.total_bytes) == (0, before[0].uuid, before[0].total_bytes)
    assert (lost.health, lost.used_bytes, lost.free_bytes, lost.processes) == ("lost", None, None, ())
    assert lost.vitals == UNKNOWN_VITALS
    assert "fallen off the bus" in lost.reason
    assert (other.health, other.used_bytes) == ("ok", before[1].used_bytes)


def test_a_hot_gpu_says_what_holds_its_clocks_and_is_in_order_otherwise(faulty: Faulty) -> None:
    faulty.heat(1, 95)

    cool, hot = faulty.provider.snapshot().gpus

    assert (hot.vitals.temperature_c, hot.vitals.throttled_by) == (95, ("hardware thermal slowdown",))
    assert (hot.health, cool.vitals.temperature_c) == ("ok", 33)


@pytest.mark.parametrize(("mode", "word"), [(0, "default"), (2, "prohibited"), (3, "exclusive-process")])
def test_a_gpu_tells_its_compute_mode_and_is_in_order_otherwise(faulty: Faulty, mode: int, word: str) -> None:
    faulty.set_compute_mode(0, mode)

    changed, other = faulty.provider.snapshot().gpus

    assert (changed.vitals.compute_mode, other.vitals.compute_mode) == (word, "default")
    assert (changed.health, changed.used_bytes) == ("ok", other.used_bytes)


def test_a_gpu_in_mig_mode_says_so_and_says_when_it_has_left_it(faulty: Faulty) -> None:
    faulty.set_mig(0, True)
    in_it = [bool(gpu.vitals.mig) for gpu in faulty.provider.snapshot().gpus]
    faulty.set_mig(0, False)
    left = faulty.provider.snapshot().gpus[0].vitals.mig

    assert (in_it, left) == ([True, False], False)
