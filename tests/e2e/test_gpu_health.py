"""Memory limits and the health of GPUs with a real daemon on a simulated host."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

from gpuward.control.client import Refused

pytestmark = pytest.mark.e2e

GIB = 1024**3
FAST = "[inventory]\nsample-interval-s = 0.2\n"
HOLDER = """
[pool.m]
engine = "command"
command = ["/bin/sleep", "1000"]
gpus-per-worker = 1
gpu-memory-utilization = 0.5
ready-after-s = 0.05
on-breach = "{on_breach}"
stop-timeout-s = 5
"""


def holds(daemon: DaemonUnderTest, pid: int, gib: int, gpu: int = 0) -> None:
    """Let a process claim simulated memory, as any program on a simulated host may."""
    claims = daemon.root / "rt" / "sim-claims"
    draft = claims / f".{pid}.draft"
    draft.write_text(f"{gpu} {gib * GIB}\n")
    draft.rename(claims / str(pid))


def kinds(daemon: DaemonUnderTest) -> list[str]:
    return [event["kind"] for event in daemon.call("events", {"limit": 1000})["events"]]


def test_a_worker_beyond_its_claim_is_warned_about_and_left_alone(daemon: DaemonUnderTest) -> None:
    daemon.start(HOLDER.format(on_breach="warn"), config=FAST)
    before = daemon.all_ready()["m/0"]

    holds(daemon, before["pid"], 60)
    warned = daemon.until("m/0", lambda worker: bool(worker["warnings"]))

    assert "holds 60.0 GiB on GPU 0: more than its claim of 39.8 GiB" in warned["warnings"][0]
    assert "memory-breach" in kinds(daemon)
    assert (warned["pid"], warned["phase"]) == (before["pid"], "ready")
    held = gpu(daemon, 0)
    assert held["unattributed_bytes"] == 0
    assert [(one["pid"], one["kind"], one["worker"]) for one in held["holders"]] == [(before["pid"], "worker", "m/0")]
    holds(daemon, before["pid"], 39)
    daemon.until("m/0", lambda worker: not any("claim" in one for one in worker["warnings"]))
    assert "memory-breach-over" in kinds(daemon)


def test_a_pool_that_says_restart_gets_a_fresh_run_and_the_samples_of_the_old_one(daemon: DaemonUnderTest) -> None:
    daemon.start(HOLDER.format(on_breach="restart"), config=FAST)
    before = daemon.all_ready()["m/0"]

    holds(daemon, before["pid"], 60)
    after = daemon.until("m/0", lambda worker: worker["ready"] and worker["run"] == 2)

    assert (after["restarts"], after["goal"]) == (1, "up")
    run = daemon.call("why", {"worker": "m/0"})["runs"][0]
    assert (run["cause"], run["ended_by"], run["by"]) == ("memory-breach", "breach", None)
    assert "more than its claim" in run["reason"]
    uuid = after["gpu_uuids"][0]
    assert run["peak_bytes"] == {uuid: 60 * GIB}
    assert [(one["gpu"], one["peak_bytes"]) for one in run["memory"]] == [(after["gpus"][0], 60 * GIB)]
    assert [sample["used_bytes"].get(uuid) for sample in run["samples"]][-1] == 60 * GIB
    assert 3 <= len(run["samples"]) <= 120


def test_a_pool_that_says_drain_stays_down_with_the_reason_until_started(daemon: DaemonUnderTest) -> None:
    daemon.start(HOLDER.format(on_breach="drain"), config=FAST)
    before = daemon.all_ready()["m/0"]

    holds(daemon, before["pid"], 60)
    drained = daemon.until("m/0", lambda worker: worker["phase"] == "stopped")

    assert drained["goal"] == "up"
    assert 'on-breach is "drain"' in drained["reason"]
    daemon.call("start", {"targets": ["m"]})
    daemon.until("m/0", lambda worker: worker["ready"] and worker["run"] == 2)


SPARE = HOLDER.format(on_breach="warn") + "spare = {spare}\n"


def gpu(daemon: DaemonUnderTest, index: int) -> dict[str, Any]:
    found: dict[str, Any] = daemon.call("status")["gpus"][index]
    return found


def test_an_xid_of_the_gpu_moves_a_worker_that_has_a_spare(daemon: DaemonUnderTest) -> None:
    daemon.start(SPARE.format(spare="true"), config=FAST)
    assert daemon.all_ready()["m/0"]["gpus"] == [0]

    told = daemon.ctl("sim", "xid", "0", "48")
    moved = daemon.until("m/0", lambda worker: worker["ready"] and worker["run"] == 2)

    assert told.returncode == 0
    assert moved["gpus"] == [1]
    assert (gpu(daemon, 0)["health"], gpu(daemon, 1)["health"]) == ("quarantined", "ok")
    assert "XID 48 (double-bit ECC error)" in gpu(daemon, 0)["reason"]
    assert "gpu-quarantined" in kinds(daemon)


def test_a_worker_without_a_spare_goes_on_is_then_held_back_and_starts_after_clear(daemon: DaemonUnderTest) -> None:
    daemon.start(SPARE.format(spare="false"), config=FAST)
    before = daemon.all_ready()["m/0"]

    daemon.call("sim", {"fault": "xid", "gpu": 0, "value": 79})
    eventually(lambda: gpu(daemon, 0)["health"] == "quarantined", within_s=5)
    assert daemon.worker("m/0")["pid"] == before["pid"]
    assert "GPU 0 is quarantined since" in " ".join(daemon.call("why", {"worker": "m/0"})["sentences"])
    daemon.call("restart", {"targets": ["m"], "force": True})
    held = daemon.until("m/0", lambda worker: worker["phase"] == "blocked")
    daemon.kill()
    daemon.start(SPARE.format(spare="false"), config=FAST)
    still = daemon.until("m/0", lambda worker: "held back" in worker["reason"])
    cleared = daemon.ctl("gpu", "clear", "0", "--reason", "board swapped")

    assert "held back: GPU 0 is quarantined" in held["reason"]
    assert "gpuctl gpu clear 0" in still["reason"]
    assert (cleared.returncode, cleared.stdout) == (0, "GPU 0 is ok\n")
    daemon.until("m/0", lambda worker: worker["ready"] and worker["gpus"] == [0])


def test_a_cordoned_gpu_gets_no_new_worker_and_its_own_goes_on(daemon: DaemonUnderTest) -> None:
    daemon.start(SPARE.format(spare="true"), config=FAST)
    before = daemon.all_ready()["m/0"]

    cordoned = daemon.ctl("gpu", "cordon", "1", "--reason", "burns in")
    daemon.ctl("gpu", "cordon", "0")
    daemon.call("scale", {"pool": "m", "workers": 2})
    grown = daemon.all_ready()

    assert cordoned.stdout.startswith("GPU 1 is cordoned (burns in, by ")
    assert (grown["m/0"]["pid"], grown["m/1"]["gpus"]) == (before["pid"], [2])
    assert daemon.ctl("gpu", "clear", "1").returncode == 6
    assert daemon.ctl("gpu", "cordon", "8").returncode == 4


def test_a_lost_gpu_is_quarantined_and_cannot_be_cleared_while_it_is_lost(daemon: DaemonUnderTest) -> None:
    daemon.start(SPARE.format(spare="true"), config=FAST)
    daemon.all_ready()

    daemon.call("sim", {"fault": "lost", "gpu": 0})
    moved = daemon.until("m/0", lambda worker: worker["ready"] and worker["gpus"] == [1])
    with pytest.raises(Refused, match="cannot clear GPU 0 yet: lost"):
        daemon.call("gpu", {"action": "clear", "gpu": 0, "reason": "hope"})
    daemon.call("sim", {"fault": "clear"})
    eventually(lambda: gpu(daemon, 0)["health"] == "quarantined", within_s=5)
    daemon.call("gpu", {"action": "clear", "gpu": 0, "reason": "reseated"})

    assert moved["run"] == 2
    assert gpu(daemon, 0)["health"] == "ok"


def test_what_a_worker_holds_of_a_lost_gpu_is_unknown_and_never_0(daemon: DaemonUnderTest) -> None:
    daemon.start(HOLDER.format(on_breach="warn"), config=FAST)
    holds(daemon, daemon.all_ready()["m/0"]["pid"], 30)
    daemon.until("m/0", lambda worker: worker["memory"][0]["used_bytes"] == 30 * GIB)

    daemon.call("sim", {"fault": "lost", "gpu": 0})
    eventually(lambda: gpu(daemon, 0)["health"] == "lost", within_s=10)

    assert daemon.worker("m/0")["memory"][0]["used_bytes"] is None
    assert "?/39.8 GiB" in daemon.ctl("status").stdout


def test_a_daemon_knows_what_adopted_workers_hold_before_it_samples_again(daemon: DaemonUnderTest) -> None:
    daemon.start(HOLDER.format(on_breach="warn"), config=FAST)
    holds(daemon, daemon.all_ready()["m/0"]["pid"], 30)
    daemon.until("m/0", lambda worker: worker["memory"][0]["used_bytes"] == 30 * GIB)
    daemon.kill()

    daemon.start(HOLDER.format(on_breach="warn"), config="[inventory]\nsample-interval-s = 60\n")

    assert daemon.worker("m/0")["memory"][0]["used_bytes"] == 30 * GIB
    assert gpu(daemon, 0)["foreign"] == []


def test_a_driver_that_hangs_is_stale_since_then_and_the_workers_are_looked_after(daemon: DaemonUnderTest) -> None:
    daemon.start(HOLDER.format(on_breach="warn"), config=f"{FAST}deadline-s = 0.5\n")
    before = daemon.all_ready()["m/0"]

    daemon.call("sim", {"fault": "hang", "value": 30})
    eventually(lambda: daemon.call("status")["inventory"]["state"] == "stale", within_s=5)
    first = daemon.call("status")["inventory"]["sampled_at"]
    os.kill(before["pid"], signal.SIGKILL)
    held = daemon.until("m/0", lambda worker: "stale" in worker["reason"])
    daemon.call("sim", {"fault": "clear"})
    daemon.until("m/0", lambda worker: worker["ready"] and worker["run"] == 2)

    assert "has not answered for" in held["reason"]
    assert daemon.call("status")["inventory"]["sampled_at"] > first


def test_a_released_inventory_leaves_the_workers_alone_and_starts_none(daemon: DaemonUnderTest) -> None:
    daemon.start(HOLDER.format(on_breach="warn"), config=FAST)
    before = daemon.all_ready()["m/0"]

    released = daemon.ctl("inventory", "release")
    with pytest.raises(Refused, match="inventory is released"):
        daemon.call("scale", {"pool": "m", "workers": 2})
    status = daemon.call("status")
    resumed = daemon.ctl("inventory", "resume")
    eventually(lambda: daemon.call("status")["inventory"]["state"] == "ok", within_s=5)

    assert (released.returncode, resumed.returncode) == (0, 0)
    assert status["inventory"]["state"] == "released"
    assert (status["workers"][0]["pid"], status["workers"][0]["ready"]) == (before["pid"], True)
    assert len(status["gpus"]) == 8


def test_foreign_memory_is_pressure_and_never_an_action(daemon: DaemonUnderTest) -> None:
    daemon.start(HOLDER.format(on_breach="restart"), config=FAST)
    before = daemon.all_ready()["m/0"]

    daemon.ctl("sim", "foreign", "0", "78.5G")
    eventually(lambda: bool(gpu(daemon, 0)["warnings"]), within_s=5)

    shown = daemon.ctl("gpus", "-o", "wide")
    assert daemon.process is not None
    assert [(one["pid"], one["kind"]) for one in gpu(daemon, 0)["holders"]] == [(daemon.process.pid, "foreign")]
    assert "although its workers claim only 39.8 GiB" in shown.stdout
    assert "33C" in shown.stdout
    daemon.ctl("sim", "clear")
    eventually(lambda: not gpu(daemon, 0)["warnings"] and not gpu(daemon, 0)["foreign"], within_s=5)
    assert daemon.worker("m/0")["pid"] == before["pid"]


def test_a_leak_is_told_as_growth_and_heat_as_what_holds_the_clocks(daemon: DaemonUnderTest) -> None:
    daemon.start(HOLDER.format(on_breach="warn"), config=FAST)
    holds(daemon, daemon.all_ready()["m/0"]["pid"], 20)
    eventually(lambda: daemon.worker("m/0")["memory"][0]["used_bytes"] == 20 * GIB, within_s=5)

    daemon.ctl("sim", "leak", "0", "10G")
    daemon.ctl("sim", "temperature", "0", "95")
    warned = daemon.until("m/0", lambda worker: bool(worker["warnings"]))

    assert "has grown by" in warned["warnings"][0]
    assert gpu(daemon, 0)["vitals"]["throttled_by"] == ["hardware thermal slowdown"]


def test_a_gpu_in_mig_mode_gets_no_new_worker_and_is_told_with_the_reason(daemon: DaemonUnderTest) -> None:
    daemon.start(config=FAST)
    daemon.ctl("sim", "mig", "0", "1")
    daemon.ctl("sim", "compute-mode", "1", "2")
    eventually(lambda: [gpu(daemon, index)["health"] for index in (0, 1, 2)] == ["barred", "barred", "ok"], within_s=5)
    daemon.write("fleet.toml", HOLDER.format(on_breach="warn"))

    planned = daemon.ctl("plan", "fleet.toml")
    applied = daemon.ctl("apply", "fleet.toml")
    told = daemon.ctl("gpus")
    unknown = daemon.ctl("sim", "compute-mode", "1", "7")

    assert "GPU 0 is in MIG mode" in planned.stdout
    assert applied.returncode == 0
    assert daemon.worker("m/0")["gpus"] == [2]
    assert "GPU 1 is in compute mode prohibited: CUDA refuses every process" in " ".join(told.stdout.split())
    assert (unknown.returncode, "there is no compute mode 7" in unknown.stderr) == (2, True)


def test_a_worker_on_a_gpu_that_is_prohibited_meanwhile_goes_on_and_is_held_back_after_its_end(
    daemon: DaemonUnderTest,
) -> None:
    daemon.start(HOLDER.format(on_breach="warn"), config=FAST)
    before = daemon.all_ready()["m/0"]

    daemon.ctl("sim", "compute-mode", "0", "2")
    eventually(lambda: gpu(daemon, 0)["health"] == "barred", within_s=5)
    same = daemon.worker("m/0")
    daemon.ctl("restart", "m/0", "--force", "--no-wait")
    held = daemon.until("m/0", lambda worker: worker["phase"] == "blocked")
    daemon.ctl("sim", "clear")

    assert (same["pid"], same["ready"]) == (before["pid"], True)
    assert "held back: GPU 0 is in compute mode prohibited" in held["reason"]
    daemon.until("m/0", lambda worker: worker["ready"] and worker["run"] == 2)


def test_a_fault_needs_a_simulated_host() -> None:
    daemon = DaemonUnderTest(simulate=None)
    daemon.start('[pool.c]\nengine = "command"\ncommand = ["/bin/sleep", "1000"]\ngpus-per-worker = 0\n')

    with pytest.raises(Refused, match="these GPUs are real"):
        daemon.call("sim", {"fault": "clear"})
    misspelled = daemon.ctl("sim", "hang", "abc")
    daemon.close()

    assert misspelled.returncode == 2
    assert "'abc' is no number" in misspelled.stderr


BREAKS = """
[pool.m]
engine = "command"
command = ["/bin/sh", "-c", "until [ -e broken ]; do sleep 0.02; done; rm broken; echo {says}; exit 1"]
working-directory = "{root}"
gpus-per-worker = 1
gpu-memory-utilization = 0.5
ready-after-s = 0.05
stop-timeout-s = 5
[pool.m.restart]
delay-first-s = 0.1
"""


def breaks_after(daemon: DaemonUnderTest, code: int, gpu_index: int) -> None:
    """Let an error of the GPU come, and the program end a moment later."""
    assert daemon.ctl("sim", "xid", str(gpu_index), str(code)).returncode == 0
    (daemon.root / "broken").touch()


def test_an_xid_of_the_program_is_a_cuda_fault_that_restarts_once_and_then_moves(daemon: DaemonUnderTest) -> None:
    daemon.start(BREAKS.format(says="bye", root=daemon.root), config=FAST)
    daemon.all_ready()

    breaks_after(daemon, 31, 0)
    again = daemon.until("m/0", lambda worker: worker["ready"] and worker["run"] == 2)
    breaks_after(daemon, 31, 0)
    moved = daemon.until("m/0", lambda worker: worker["ready"] and worker["run"] == 3)

    assert (again["gpus"], again["last_exit"]["cause"]) == ([0], "cuda-fault")
    assert (moved["gpus"], moved["last_exit"]["cause"]) == ([1], "cuda-fault")
    assert again["last_exit"]["evidence"][0].startswith("XID 31 on GPU 0 (MMU page fault) ")
    assert again["last_exit"]["evidence"][-1] == "bye"
    why = daemon.ctl("why", "m/0").stdout
    assert "XID 31 on GPU 0 (MMU page fault)" in why


def test_an_xid_of_the_gpu_is_the_cause_and_no_start_follows(daemon: DaemonUnderTest) -> None:
    daemon.start(BREAKS.format(says="bye", root=daemon.root), config=FAST)
    daemon.all_ready()

    breaks_after(daemon, 79, 0)
    failed = daemon.until("m/0", lambda worker: worker["phase"] == "failed")

    assert failed["last_exit"]["cause"] == "gpu-hardware"
    assert "XID 79 on GPU 0 (the GPU has fallen off the bus), a hardware fault (exit code 1)" in failed["reason"]


def test_want_of_gpu_memory_is_told_with_what_the_run_and_others_held(daemon: DaemonUnderTest) -> None:
    daemon.start(BREAKS.format(says="torch.OutOfMemoryError: CUDA out of memory.", root=daemon.root), config=FAST)
    before = daemon.all_ready()["m/0"]
    holds(daemon, before["pid"], 39)
    holds(daemon, os.getpid(), 40)
    eventually(lambda: gpu(daemon, 0)["memory_used_bytes"] == 79 * GIB, within_s=10)

    (daemon.root / "broken").touch()
    ended = daemon.until("m/0", lambda worker: worker["last_exit"] is not None)

    assert ended["last_exit"]["cause"] == "gpu-oom-runtime"
    assert "GPU 0: it held 39.0 GiB of its 39.8 GiB claim, others held 40.0 GiB" in ended["last_exit"]["evidence"][-1]
    told = [event["reason"] for event in daemon.call("events", {"limit": 1000})["events"]]
    assert any("others held 40.0 GiB" in reason for reason in told)
    assert "others held 40.0 GiB" in daemon.ctl("why", "m/0").stdout


def test_an_xid_that_comes_just_behind_the_end_of_a_run_is_in_its_evidence_and_its_record(
    daemon: DaemonUnderTest,
) -> None:
    daemon.start(BREAKS.format(says="bye", root=daemon.root).replace("delay-first-s = 0.1", 'mode = "never"'))
    daemon.all_ready()

    for run in range(1, 6):  # on a busy machine more than the allowed moment may pass in between
        (daemon.root / "broken").touch()
        daemon.until("m/0", lambda worker, run=run: worker["phase"] == "stopped" and worker["run"] == run)
        daemon.call("sim", {"fault": "xid", "gpu": 0, "value": 31})
        evidence = daemon.worker("m/0")["last_exit"]["evidence"]
        if len(evidence) == 2:
            break
        daemon.call("start", {"targets": ["m"]})
        daemon.until("m/0", lambda worker, run=run: worker["ready"] and worker["run"] == run + 1)

    assert evidence[0] == "bye"
    assert evidence[1].startswith("XID 31 on GPU 0 (MMU page fault) ")
    assert evidence[1].endswith(" s after the end")
    last = daemon.call("why", {"worker": "m/0"})["runs"][0]
    assert (last["cause"], last["evidence"]) == ("crash", evidence)
