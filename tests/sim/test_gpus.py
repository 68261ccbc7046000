"""Specifications of simulated hosts, and memory that lives as long as the process that claims it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpuward.sim.claims import ClaimReader, process_status, write_claim
from gpuward.sim.gpus import MODELS, SimulatedGpus, parse_spec

MIB = 1024**2
GIB = 1024**3


@contextmanager
def a_process() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    try:
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def used(directory: Path, spec: str = "2xH100-80GB") -> list[int | None]:
    return [gpu.used_bytes for gpu in SimulatedGpus(spec, directory).snapshot().gpus]


@pytest.mark.parametrize(
    ("model", "total_mib"),
    [
        ("A100-40GB", 40960),
        ("A100-80GB", 81920),
        ("H100-80GB", 81559),
        ("H200-141GB", 143771),
        ("L40S-48GB", 46068),
        ("RTX4090-24GB", 24564),
    ],
)
def test_a_model_has_the_memory_that_nvidia_smi_shows(model: str, total_mib: int) -> None:
    assert [card.total_bytes for card in parse_spec(f"3x{model}")] == [total_mib * MIB] * 3


def test_a_mixed_host_numbers_its_gpus_through() -> None:
    cards = parse_spec("4xH100-80GB, 4xL40S-48GB")

    assert [card.index for card in cards] == list(range(8))
    assert [card.name for card in cards] == ["NVIDIA H100 80GB HBM3"] * 4 + ["NVIDIA L40S"] * 4


def test_uuids_are_well_formed_recognisable_and_the_same_each_time() -> None:
    uuids = [card.uuid for card in parse_spec("300xH100-80GB")]

    assert len(set(uuids)) == 300
    assert all(re.fullmatch(r"GPU-51000000-0000-4000-8000-[0-9a-f]{12}", uuid) for uuid in uuids)
    assert uuids == [card.uuid for card in parse_spec("300xH100-80GB")]


def test_pci_addresses_sort_as_the_indices_do() -> None:
    addresses = [card.pci_bus_id for card in parse_spec("1024xH100-80GB")]

    assert addresses == sorted(set(addresses))


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "8",
        "H100-80GB",
        "xH100-80GB",
        "0xH100-80GB",
        "-1xH100-80GB",
        "1.5xH100-80GB",
        "8xH100",
        "8xH100-80GB,",
        "²xH100-80GB",
        "8 x H100-80GB",
        "99999xH100-80GB",
        "1000000000000000000000xH100-80GB",
        "4096xH100-80GB,1xL40S-48GB",
    ],
)
def test_a_bad_specification_is_refused_with_the_form(spec: str) -> None:
    with pytest.raises(ValueError, match=r"bad GPU specification") as refusal:
        parse_spec(spec)

    assert "at most 4096" in str(refusal.value) or all(model in str(refusal.value) for model in MODELS)


def test_every_snapshot_says_that_it_is_simulated(tmp_path: Path) -> None:
    snapshot = SimulatedGpus("1xH100-80GB", tmp_path).snapshot()

    assert snapshot.simulated
    assert snapshot.driver == "simulated 1xH100-80GB"


def test_an_idle_gpu_has_all_but_the_reserved_part_free(tmp_path: Path) -> None:
    gpu = SimulatedGpus("1xH100-80GB", tmp_path).snapshot().gpus[0]

    assert (gpu.used_bytes, gpu.processes) == (0, ())
    assert gpu.free_bytes == (gpu.total_bytes or 0) - (gpu.reserved_bytes or 0)
    assert 0 < (gpu.reserved_bytes or 0) < GIB


def test_a_claim_counts_by_index_and_by_uuid(tmp_path: Path) -> None:
    uuid = parse_spec("2xH100-80GB")[1].uuid
    with a_process() as pid:
        (tmp_path / str(pid)).write_text(f"0 {GIB}\n{uuid} {2 * GIB}\n1 {GIB}\n")

        assert used(tmp_path) == [GIB, 3 * GIB]


def test_a_claim_goes_with_its_process_and_so_does_its_file(tmp_path: Path) -> None:
    with a_process() as pid:
        (tmp_path / str(pid)).write_text(f"0 {GIB}\n")

    assert used(tmp_path) == [0, 0]
    assert list(tmp_path.iterdir()) == []


def test_a_zombie_holds_nothing(tmp_path: Path) -> None:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", "input()"], {})
    (tmp_path / str(pid)).write_text(f"0 {GIB}\n")
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    held = used(tmp_path)

    status = process_status(pid)
    os.waitpid(pid, 0)
    assert status is not None
    assert (held, status.state) == ([0, 0], "Z")


def test_a_claim_older_than_its_process_belonged_to_an_earlier_one_of_that_pid(tmp_path: Path) -> None:
    with a_process() as pid:
        claim = tmp_path / str(pid)
        claim.write_text(f"0 {GIB}\n")
        os.utime(claim, (time.time() - 3600, time.time() - 3600))

        assert used(tmp_path) == [0, 0]
        assert claim.exists(), "the living process may be about to write its own"


def test_a_claim_once_accepted_survives_a_step_of_the_clock(tmp_path: Path) -> None:
    gpus = SimulatedGpus("1xH100-80GB", tmp_path)
    write_claim(str(tmp_path), {"0": GIB})

    first, second = gpus.snapshot(), gpus.snapshot()

    assert first.gpus[0].processes == second.gpus[0].processes


@pytest.mark.parametrize(
    "content", [b"", b"0\n", b"0 -5\n", b"0 lots\n", b"0 1 2\n", b"\xff\xfe\n", b"0 1073741824\nrubbish\n"]
)
def test_a_garbage_claim_counts_nothing_while_its_process_lives(tmp_path: Path, content: bytes) -> None:
    with a_process() as pid:
        (tmp_path / str(pid)).write_bytes(content)

        assert used(tmp_path) == [0, 0]
        assert (tmp_path / str(pid)).exists()
    used(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_things_that_are_no_claims_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".123.draft").write_text("0 1\n")
    (tmp_path / "README").write_text("hello")
    (tmp_path / "0").write_text("0 1\n")
    (tmp_path / "٣").write_text("0 1\n")
    os.mkfifo(tmp_path / str(os.getpid()))

    assert used(tmp_path) == [0, 0]
    assert len(list(tmp_path.iterdir())) == 5


def test_a_share_of_a_gpu_that_is_not_here_counts_nowhere(tmp_path: Path) -> None:
    write_claim(str(tmp_path), {"7": GIB, "GPU-elsewhere": GIB, "1": GIB})

    assert used(tmp_path) == [0, GIB]


def test_a_gpu_that_is_claimed_beyond_its_size_is_full_not_negative(tmp_path: Path) -> None:
    write_claim(str(tmp_path), {"0": 500 * GIB})

    gpu = SimulatedGpus("1xH100-80GB", tmp_path).snapshot().gpus[0]

    assert gpu.free_bytes == 0
    assert gpu.processes[0].used_bytes == 500 * GIB


def test_a_changed_claim_is_seen_at_the_next_round(tmp_path: Path) -> None:
    reader = ClaimReader(str(tmp_path))
    write_claim(str(tmp_path), {"0": 1})
    before = reader.read()

    write_claim(str(tmp_path), {"0": 2})

    assert [claim.shares for claim in [*before, *reader.read()]] == [(("0", 1),), (("0", 2),)]


def test_a_claims_directory_that_vanished_makes_the_inventory_unavailable(tmp_path: Path) -> None:
    gpus = SimulatedGpus("1xH100-80GB", tmp_path / "claims")
    (tmp_path / "claims").rmdir()

    snapshot = gpus.snapshot()

    assert (snapshot.state, snapshot.gpus) == ("unavailable", ())
    assert "cannot list the simulated claims" in snapshot.reason


def test_workers_are_told_the_claims_directory_and_the_gpus(tmp_path: Path) -> None:
    gpus = SimulatedGpus("2xL40S-48GB", tmp_path)

    environment = gpus.environment()

    assert environment["GPUWARD_SIM_CLAIMS"] == str(tmp_path)
    described = json.loads(environment["GPUWARD_SIM_GPUS"])
    assert [(gpu["index"], gpu["uuid"]) for gpu in described] == [(card.index, card.uuid) for card in gpus.cards]
    assert described[0]["total_bytes"] == 46068 * MIB


def test_foreign_memory_is_held_by_the_simulating_process_and_given_back(tmp_path: Path) -> None:
    gpus = SimulatedGpus("2xH100-80GB", tmp_path)

    gpus.hold(1, 3 * GIB)
    held = gpus.snapshot().gpus[1]
    gpus.hold(1, 0)

    assert [(process.pid, process.used_bytes) for process in held.processes] == [(os.getpid(), 3 * GIB)]
    assert gpus.snapshot().gpus[1].processes == ()


def test_a_leak_grows_the_largest_process_up_to_what_is_free(tmp_path: Path) -> None:
    gpus = SimulatedGpus("1xH100-80GB", tmp_path)
    write_claim(str(tmp_path), {"0": GIB})

    gpus.leak(0, 10**9 * GIB)
    gpus.snapshot()
    gpu = gpus.snapshot().gpus[0]

    assert gpu.free_bytes == 0
    assert gpu.processes[0].used_bytes == gpu.used_bytes == (gpu.total_bytes or 0) - (gpu.reserved_bytes or 0)


def test_a_driver_made_to_hang_answers_when_the_fault_is_cleared(tmp_path: Path) -> None:
    gpus = SimulatedGpus("1xH100-80GB", tmp_path)
    gpus.hang(30.0)
    clearing = threading.Timer(0.1, gpus.clear)
    began_s = time.monotonic()

    clearing.start()
    snapshot = gpus.snapshot()

    assert 0.05 < time.monotonic() - began_s < 10.0
    assert snapshot.state == "ok"
    clearing.join()


def test_cleared_faults_leave_the_gpus_as_they_were(tmp_path: Path) -> None:
    gpus = SimulatedGpus("2xH100-80GB", tmp_path)
    before = gpus.snapshot().gpus
    gpus.lose(0)
    gpus.heat(1, 99)
    gpus.hold(1, GIB)
    gpus.leak(1, GIB)
    broken = gpus.snapshot().gpus

    gpus.clear()

    assert (broken[0].health, broken[1].vitals.temperature_c) == ("lost", 99)
    assert gpus.snapshot().gpus == before


def test_memory_with_a_lag_is_held_by_nobody_for_a_while_after_its_process(tmp_path: Path) -> None:
    with a_process() as pid:
        (tmp_path / str(pid)).write_text(f"0 {GIB}\nlag 60\n")
        assert used(tmp_path, "1xH100-80GB") == [GIB]

    gpu = SimulatedGpus("1xH100-80GB", tmp_path).snapshot().gpus[0]
    (late,) = tmp_path.iterdir()
    long_ago_s = time.time() - 61
    os.utime(late, (long_ago_s, long_ago_s))

    assert (gpu.used_bytes, gpu.processes) == (GIB, ())
    assert used(tmp_path, "1xH100-80GB") == [0]
    assert list(tmp_path.iterdir()) == []
