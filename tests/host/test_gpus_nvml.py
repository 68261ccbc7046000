"""Driver trouble as states with reasons. The binding is the real pynvml; only the C library beneath it is a fake."""

from __future__ import annotations

import os
import types

import pytest
from tests.host.fake_driver import DriverGpu, FakeDriver, binding_to

from gpuward.host.gpus import NoGpus, NvmlGpus
from gpuward.policy.gpus.inventory import UNKNOWN_VITALS, Gpu, Vitals

GIB = 1024**3


def a_driver(count: int = 2) -> FakeDriver:
    return FakeDriver(*(DriverGpu(f"GPU-{index}", f"00000000:{0x10 + index:02X}:00.0") for index in range(count)))


def gpus_of(driver: FakeDriver) -> NvmlGpus:
    return NvmlGpus(binding_to(driver))


def by_uuid(provider: NvmlGpus) -> dict[str, Gpu]:
    return {gpu.uuid: gpu for gpu in provider.snapshot().gpus}


def test_a_host_without_the_library_is_told_what_to_do() -> None:
    driver = a_driver()
    driver.installed = False

    snapshot = gpus_of(driver).snapshot()

    assert (snapshot.state, snapshot.gpus) == ("unavailable", ())
    assert "no NVIDIA driver: libnvidia-ml.so.1 not found" in snapshot.reason
    assert "--simulate" in snapshot.reason


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (4, "no permission to talk to the NVIDIA driver"),
        (9, "installed but not loaded"),
        (18, "kernel module and libraries differ in version"),
        (999, "the driver does not say what is wrong"),
        (17, "nvmlInit: The operating system has blocked the request"),
    ],
)
def test_a_driver_that_does_not_start_is_a_state_with_a_reason(code: int, sentence: str) -> None:
    driver = a_driver()
    driver.init_error = code

    snapshot = gpus_of(driver).snapshot()

    assert snapshot.state == "unavailable"
    assert sentence in snapshot.reason
    assert f"NVML error {code}" in snapshot.reason


def test_a_driver_that_lists_no_gpu_is_not_a_host_without_gpus() -> None:
    snapshot = gpus_of(a_driver(0)).snapshot()

    assert snapshot.state == "unavailable"
    assert "lists 0 GPUs" in snapshot.reason


def test_an_inventory_comes_back_with_its_driver() -> None:
    driver = a_driver()
    provider = gpus_of(driver)
    driver.count_error = 18

    broken, repaired = provider.snapshot(), None
    driver.count_error = 0
    repaired = provider.snapshot()

    assert (broken.state, repaired.state, len(repaired.gpus)) == ("unavailable", "ok", 2)
    assert driver.calls["nvmlInitWithFlags"] == 2
    assert driver.calls["nvmlShutdown"] == 1


def test_a_binding_that_is_missing_is_named() -> None:
    snapshot = NvmlGpus(types.ModuleType("pynvml")).snapshot()

    assert snapshot.state == "unavailable"
    assert "this pynvml has no nvmlInit" in snapshot.reason


@pytest.mark.parametrize("code", [15, 16])
def test_a_gpu_lost_in_service_keeps_its_identity_rank_and_size(code: int) -> None:
    driver = a_driver(3)
    provider = gpus_of(driver)
    provider.snapshot()

    driver.gpus[1].error = code
    gpus = provider.snapshot().gpus

    assert [(gpu.index, gpu.uuid, gpu.health) for gpu in gpus] == [
        (0, "GPU-0", "ok"),
        (1, "GPU-1", "lost"),
        (2, "GPU-2", "ok"),
    ]
    assert gpus[1].total_bytes == driver.gpus[1].total_bytes
    assert (gpus[1].used_bytes, gpus[1].free_bytes) == (None, None)
    assert f"NVML error {code}" in gpus[1].reason


def test_a_gpu_lost_before_the_daemon_started_is_listed_last_without_identity() -> None:
    driver = a_driver()
    driver.gpus[0].error = 15

    gpus = gpus_of(driver).snapshot().gpus

    assert [(gpu.uuid, gpu.index, gpu.health) for gpu in gpus] == [("GPU-1", 0, "ok"), ("unidentified-0", 1, "lost")]


def test_a_gpu_that_the_driver_lists_no_more_is_lost_and_the_others_move_up() -> None:
    driver = a_driver(3)
    provider = gpus_of(driver)
    provider.snapshot()
    provider.close()

    del driver.gpus[1]
    gpus = provider.snapshot().gpus

    assert [(gpu.uuid, gpu.index, gpu.health) for gpu in gpus] == [
        ("GPU-0", 0, "ok"),
        ("GPU-2", 1, "ok"),
        ("GPU-1", 2, "lost"),
    ]
    assert "does not list it any more" in gpus[2].reason


def test_a_gpu_unreachable_after_a_driver_restart_is_the_one_that_is_missing() -> None:
    driver = a_driver()
    provider = gpus_of(driver)
    provider.snapshot()
    provider.close()

    driver.gpus[0].error = 15
    gpus = provider.snapshot().gpus

    assert [(gpu.uuid, gpu.health) for gpu in gpus] == [("GPU-1", "ok"), ("GPU-0", "lost")]
    assert "NVML error 15" in gpus[1].reason


def test_a_gpu_that_recovers_is_well_again() -> None:
    driver = a_driver()
    provider = gpus_of(driver)
    driver.gpus[0].error = 15
    provider.snapshot()

    driver.gpus[0].error = 0

    assert [(gpu.uuid, gpu.health) for gpu in provider.snapshot().gpus] == [("GPU-0", "ok"), ("GPU-1", "ok")]


def test_a_gpu_whose_memory_call_fails_is_unknown_and_the_others_are_not() -> None:
    driver = a_driver()
    driver.gpus[1].memory_error = 999

    gpus = gpus_of(driver).snapshot().gpus

    assert [gpu.health for gpu in gpus] == ["ok", "unknown"]
    assert gpus[1].total_bytes is None


def test_memory_version_1_counts_the_reserved_part_as_used() -> None:
    driver = a_driver(1)
    driver.missing = {"nvmlDeviceGetMemoryInfo_v2"}

    gpu = gpus_of(driver).snapshot().gpus[0]

    assert gpu.reserved_bytes is None
    assert gpu.used_bytes == driver.gpus[0].reserved_bytes
    assert gpu.total_bytes == driver.gpus[0].total_bytes


def test_unified_memory_is_unknown_not_zero() -> None:
    driver = a_driver(1)
    driver.gpus[0].memory_error = 3

    snapshot = gpus_of(driver).snapshot()

    gpu = snapshot.gpus[0]
    assert (snapshot.state, gpu.health) == ("ok", "ok")
    assert (gpu.total_bytes, gpu.used_bytes, gpu.free_bytes) == (None, None, None)
    assert "unified memory" in gpu.reason


def test_a_total_of_zero_is_unknown_memory() -> None:
    driver = a_driver(1)
    driver.gpus[0].total_bytes = driver.gpus[0].free_bytes = 0

    gpu = gpus_of(driver).snapshot().gpus[0]

    assert (gpu.total_bytes, gpu.used_bytes, gpu.free_bytes) == (None, None, None)


def test_a_process_in_several_lists_is_one_with_its_largest_figure() -> None:
    driver = a_driver(1)
    driver.gpus[0].compute = [(os.getpid(), None), (4, 2 * GIB)]
    driver.gpus[0].graphics = [(4, 1 * GIB)]
    driver.gpus[0].mps = [(os.getpid(), 5 * GIB)]

    processes = gpus_of(driver).snapshot().gpus[0].processes

    assert sorted((process.pid, process.used_bytes) for process in processes) == sorted(
        [(4, 2 * GIB), (os.getpid(), 5 * GIB)]
    )


def test_memory_of_a_process_that_the_driver_does_not_tell_is_unknown_not_zero() -> None:
    driver = a_driver(1)
    driver.gpus[0].compute = [(os.getpid(), None)]

    processes = gpus_of(driver).snapshot().gpus[0].processes

    assert [process.used_bytes for process in processes] == [None]


def test_an_older_driver_lists_processes_in_version_2() -> None:
    driver = a_driver(1)
    driver.missing = {f"nvmlDeviceGet{kind}RunningProcesses_v3" for kind in ("Compute", "MPSCompute", "Graphics")}
    driver.gpus[0].compute = [(os.getpid(), GIB)]

    processes = gpus_of(driver).snapshot().gpus[0].processes

    assert [(process.pid, process.used_bytes) for process in processes] == [(os.getpid(), GIB)]


def test_a_process_list_that_may_not_be_read_leaves_the_gpu_usable_and_says_so() -> None:
    driver = a_driver(1)
    driver.gpus[0].processes_error = 4

    gpu = gpus_of(driver).snapshot().gpus[0]

    assert (gpu.health, gpu.processes) == ("ok", ())
    assert gpu.free_bytes is not None
    assert "processes on this GPU are not known" in gpu.reason


def test_vitals_come_in_the_units_that_their_names_say() -> None:
    driver = a_driver(1)
    gpu = driver.gpus[0]
    gpu.busy_percent, gpu.temperature_c, gpu.throttles, gpu.compute_mode, gpu.mig = 97, 81, 0x4 | 0x40, 3, 1
    gpu.fields = {4: 2, 144: 1, 145: 1, 186: 693_500, 230: 4}

    vitals = gpus_of(driver).snapshot().gpus[0].vitals

    assert vitals == Vitals(
        busy_percent=97,
        temperature_c=81,
        power_w=693.5,
        throttled_by=("hardware thermal slowdown",),
        ecc_uncorrected=2,
        rows_pending=True,
        rows_failed=True,
        recovery="drain and reset the GPU",
        compute_mode="exclusive-process",
        mig=True,
    )


def test_what_a_product_does_not_tell_is_unknown_not_zero() -> None:
    driver = a_driver(1)
    gpu = driver.gpus[0]
    gpu.busy_percent = gpu.temperature_c = gpu.throttles = gpu.compute_mode = gpu.mig = None
    gpu.fields = {}

    answered = gpus_of(driver).snapshot().gpus[0]

    assert (answered.vitals, answered.health) == (UNKNOWN_VITALS, "ok")


def test_an_old_driver_without_the_calls_for_vitals_still_tells_memory() -> None:
    driver = a_driver(1)
    driver.missing = {
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
        "nvmlDeviceGetFieldValues",
    }

    gpu = gpus_of(driver).snapshot().gpus[0]

    assert (gpu.vitals.throttled_by, gpu.vitals.recovery, gpu.vitals.temperature_c) == (None, None, 33)
    assert gpu.free_bytes == driver.gpus[0].free_bytes


def test_a_gpu_whose_processes_change_while_its_memory_is_read_is_settling() -> None:
    driver = a_driver(2)
    driver.gpus[0].while_asked = lambda: driver.gpus[0].compute.append((os.getpid(), GIB))
    provider = gpus_of(driver)

    changed = provider.snapshot().gpus
    driver.gpus[0].while_asked = None
    quiet = provider.snapshot().gpus

    assert [gpu.settling for gpu in changed] == [True, False]
    assert [gpu.settling for gpu in quiet] == [False, False]


def test_a_gpu_lost_between_its_memory_and_its_vitals_is_lost() -> None:
    driver = a_driver(2)
    provider = gpus_of(driver)
    provider.snapshot()

    driver.gpus[0].vitals_error = 15
    lost, other = provider.snapshot().gpus

    assert (lost.health, lost.vitals, lost.free_bytes) == ("lost", UNKNOWN_VITALS, None)
    assert other.health == "ok"


def test_a_steady_round_asks_for_names_once_and_each_time_who_is_there() -> None:
    driver = a_driver(8)
    provider = gpus_of(driver)

    for _ in range(5):
        provider.snapshot()

    assert driver.calls["nvmlDeviceGetName"] == 8
    assert driver.calls["nvmlDeviceGetUUID"] == 8 * 5
    assert driver.calls["nvmlInitWithFlags"] == 1


def test_no_gpus_is_good_only_because_it_was_asked_for() -> None:
    snapshot = NoGpus().snapshot()

    assert (snapshot.provider, snapshot.state, snapshot.gpus) == ("none", "ok", ())
    assert snapshot.reason == "the inventory provider is none"


def test_when_a_gpu_is_gone_and_the_others_move_up_the_right_one_is_lost() -> None:
    driver = a_driver(3)
    provider = gpus_of(driver)
    provider.snapshot()

    del driver.gpus[0]
    gpus = by_uuid(provider)

    assert {uuid: gpu.health for uuid, gpu in gpus.items()} == {"GPU-0": "lost", "GPU-1": "ok", "GPU-2": "ok"}
