"""The main job with real processes, sockets and signals on a simulated host."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import psutil
import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

from gpuward.control.client import Refused

pytestmark = pytest.mark.e2e

SEED = Path(__file__).parents[2] / "etc" / "dynamo.yaml"
SLEEPERS = """
[pool.sleeper]
engine = "command"
command = ["/bin/sleep", "1000"]
gpus-per-worker = 0
workers = 2
ready-after-s = 0.05
[pool.sleeper.restart]
delay-first-s = 0.05
delay-max-s = 0.05
"""


def test_the_seed_file_puts_each_worker_on_its_own_gpu_and_brings_it_up(daemon: DaemonUnderTest) -> None:
    daemon.start(SEED)

    workers = daemon.all_ready()

    assert {name: worker["gpus"] for name, worker in workers.items()} == {
        "VllmWorker/0": [0],
        "VllmWorker/1": [1],
        "VllmWorker/2": [2],
        "PrefillWorker/0": [3],
    }
    for worker in workers.values():
        environment = Path(f"/proc/{worker['pid']}/environ").read_bytes().split(b"\0")
        assert f"CUDA_VISIBLE_DEVICES={worker['gpus'][0]}".encode() in environment
        assert b"CUDA_DEVICE_ORDER=PCI_BUS_ID" in environment
    status = daemon.call("status")
    eventually(lambda: daemon.worker("VllmWorker/0")["memory"][0]["used_bytes"] > 0, within_s=5)
    assert status["simulated"] is True
    assert daemon.stop() == 0
    assert daemon.left() == ()


def test_a_killed_worker_comes_back_with_the_cause_and_nothing_else_is_touched(daemon: DaemonUnderTest) -> None:
    daemon.start(SLEEPERS)
    before = daemon.all_ready()

    os.kill(before["sleeper/0"]["pid"], signal.SIGKILL)
    after = daemon.until("sleeper/0", lambda worker: worker["ready"] and worker["run"] == 2)

    assert after["restarts"] == 1
    assert (after["last_exit"]["cause"], after["last_exit"]["signal"]) == ("crash", 9)
    assert daemon.worker("sleeper/1")["pid"] == before["sleeper/1"]["pid"]


def test_engine_children_are_gone_before_the_replacement_of_a_killed_api_server(daemon: DaemonUnderTest) -> None:
    daemon.start('[pool.m]\nmodel = "org/m"\ngpus-per-worker = 2\n[pool.m.restart]\ndelay-first-s = 0.05\n')
    before = daemon.all_ready()["m/0"]
    sockets = [
        Path(entry.removeprefix("VLLM_RPC_BASE_PATH="))
        for entry in Path(f"/proc/{before['pid']}/environ").read_text().split("\0")
        if entry.startswith("VLLM_RPC_BASE_PATH=")
    ]
    assert [path.is_dir() for path in sockets] == [True]
    tree = [pid for pid in psutil.pids() if _session(pid) == before["pid"]]
    assert len(tree) >= 4

    os.kill(before["pid"], signal.SIGKILL)
    daemon.until("m/0", lambda worker: worker["run"] == 2 and worker["pid"] is not None)

    assert [pid for pid in tree if _session(pid) == before["pid"] and _state(pid) != "Z"] == []
    assert not sockets[0].exists()


def test_the_workers_survive_the_daemon_and_the_next_one_goes_on_with_them(daemon: DaemonUnderTest) -> None:
    daemon.start(SLEEPERS)
    before = daemon.all_ready()

    daemon.kill()
    os.kill(before["sleeper/1"]["pid"], signal.SIGTERM)
    daemon.start(SLEEPERS)
    after = daemon.until("sleeper/1", lambda worker: worker["run"] == 2 and worker["ready"])

    assert daemon.worker("sleeper/0")["pid"] == before["sleeper/0"]["pid"]
    assert (after["last_exit"]["signal"], after["restarts"]) == (15, 1)


def test_a_stop_is_final_and_survives_the_daemon(daemon: DaemonUnderTest) -> None:
    daemon.start(SLEEPERS)
    daemon.all_ready()

    daemon.call("stop", {"targets": ["sleeper/0"]})
    daemon.until("sleeper/0", lambda worker: worker["phase"] == "stopped")
    daemon.kill()
    daemon.start(SLEEPERS)

    daemon.until("sleeper/1", lambda worker: worker["ready"])
    assert (daemon.worker("sleeper/0")["phase"], daemon.worker("sleeper/0")["goal"]) == ("stopped", "down")


def test_workers_stopped_with_the_daemon_start_again_with_it(daemon: DaemonUnderTest) -> None:
    daemon.start(SLEEPERS)
    daemon.all_ready()

    assert daemon.stop() == 0
    daemon.start(SLEEPERS)

    assert all(worker["run"] == 2 for worker in daemon.all_ready().values())


def test_scaling_keeps_the_survivors(daemon: DaemonUnderTest) -> None:
    daemon.start(SLEEPERS)
    before = daemon.all_ready()

    daemon.call("scale", {"pool": "sleeper", "workers": 4})
    grown = daemon.all_ready()
    daemon.call("scale", {"pool": "sleeper", "workers": 1})
    eventually(lambda: list(daemon.workers()) == ["sleeper/0"], within_s=10)

    assert len(grown) == 4
    assert daemon.worker("sleeper/0")["pid"] == before["sleeper/0"]["pid"]


def test_the_applied_fleet_goes_on_after_a_restart_and_a_changed_file_is_reported(daemon: DaemonUnderTest) -> None:
    daemon.start(SLEEPERS)
    daemon.all_ready()
    assert daemon.stop() == 0

    daemon.start(SLEEPERS.replace("workers = 2", "workers = 3"))
    status = daemon.call("status")
    daemon.call("reload")

    assert len(status["workers"]) == 2
    assert status["fleet"]["drift"] is True
    assert "differs from the applied revision 1" in status["fleet"]["drift_reason"]
    assert len(daemon.workers()) == 3
    assert daemon.call("status")["fleet"] == {
        "revision": 2,
        "source": "fleet.toml",
        "drift": False,
        "drift_reason": None,
        "drift_advice": "",
    }


def test_a_file_that_is_edited_while_the_daemon_runs_is_reported_and_left_alone(daemon: DaemonUnderTest) -> None:
    daemon.start(SLEEPERS)
    daemon.all_ready()

    daemon.write("fleet.toml", SLEEPERS.replace("workers = 2", "workers = 3"))
    status = daemon.call("status")

    assert "differs from the applied revision 1" in status["fleet"]["drift_reason"]
    assert len(status["workers"]) == 2


def test_diff_without_a_file_shows_what_the_edited_file_of_the_start_would_change(daemon: DaemonUnderTest) -> None:
    daemon.start(SLEEPERS)
    daemon.all_ready()

    same = daemon.ctl("diff")
    daemon.write("fleet.toml", SLEEPERS.replace("workers = 2", "workers = 3\nstop-timeout-s = 7"))
    edited = daemon.ctl("diff", "-o", "wide")
    daemon.write("fleet.toml", SLEEPERS.replace("workers = 2", "workers = -2"))
    broken = daemon.ctl("diff")

    path = daemon.root / "fleet.toml"
    told = [" ".join(one.stdout.split()) for one in (same, edited)]
    assert (same.returncode, told[0]) == (0, f"no difference: {path} says what runs, revision 1 of fleet.toml")
    assert f"{path} differs from the applied revision 1" in told[1]
    assert "sleeper/2 start new worker on" in told[1]
    assert "pool sleeper: stop-timeout-s unset -> 7.0" in told[1]
    assert "workers, stop-timeout-s changed: applied without a restart" in told[1]
    assert told[1].endswith("1 to start, 2 unchanged gpuctl reload applies the file")
    assert (broken.returncode, "workers = -2" in broken.stderr) == (6, True)
    assert len(daemon.workers()) == 2


def test_scaling_a_pool_repeats_no_warnings_of_the_others(daemon: DaemonUnderTest) -> None:
    without_effect = 'engine = "command"\ncommand = ["/bin/sleep", "900"]\nmax-model-len = 4096\ngpus-per-worker = 0\n'
    daemon.start(f"[pool.scaled]\n{without_effect}workers = 2\n[pool.other]\n{without_effect}")
    daemon.all_ready()

    planned = daemon.ctl("plan", "fleet.toml", "-o", "json")
    scaled = daemon.ctl("scale", "scaled=1", "-o", "json")

    warned = [{one["pool"] for one in json.loads(planned.stdout)["warnings"]}]
    warned.append({one["pool"] for one in json.loads(scaled.stdout)["plan"]["warnings"]})
    assert warned == [{"scaled", "other"}, {"scaled"}]


def test_a_fleet_that_does_not_fit_changes_nothing(daemon: DaemonUnderTest) -> None:
    daemon.start(SLEEPERS)
    before = daemon.all_ready()
    text = '[pool.big]\nmodel = "org/m"\nworkers = 3\ngpus-per-worker = 3\ntensor-parallel-size = 3\n'

    with pytest.raises(Refused) as refused:
        daemon.call("apply", {"text": text, "name": "big.toml", "directory": "/"})

    assert refused.value.code == "refused"
    assert "3" in str(refused.value)
    assert "per worker" in str(refused.value)
    assert {name: worker["pid"] for name, worker in daemon.workers().items()} == {
        name: worker["pid"] for name, worker in before.items()
    }
    assert daemon.call("status")["fleet"]["revision"] == 1


def test_a_program_that_is_not_there_fails_once_with_its_name(daemon: DaemonUnderTest) -> None:
    daemon.start('[pool.x]\nengine = "command"\ncommand = ["/no/such/program"]\ngpus-per-worker = 0\n')

    worker = daemon.until("x/0", lambda worker: worker["phase"] == "failed")

    assert worker["last_exit"]["cause"] == "config-error"
    assert "/no/such/program" in worker["reason"]
    assert worker["run"] == 1


def test_a_model_path_that_is_not_there_is_a_config_error_and_no_loop(daemon: DaemonUnderTest) -> None:
    daemon.start('[pool.x]\nmodel = "/no/such/model"\n')

    worker = daemon.until("x/0", lambda worker: worker["phase"] == "failed")

    assert worker["last_exit"]["cause"] == "config-error"
    assert (worker["run"], worker["restarts"]) == (1, 0)


def test_a_port_that_somebody_else_has_is_waited_for_by_name(daemon: DaemonUnderTest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        daemon.start(f'[pool.x]\nmodel = "org/m"\nport = {port}\n')
        blocked = daemon.until("x/0", lambda worker: f"port {port}" in worker["reason"])
    ready = daemon.until("x/0", lambda worker: worker["ready"])

    assert f"pid {os.getpid()}" in blocked["reason"]
    assert (ready["port"], ready["restarts"]) == (port, 0)


def test_a_worker_without_a_port_of_its_own_moves_away_from_a_port_that_is_taken_while_it_loads(
    daemon: DaemonUnderTest,
) -> None:
    daemon.environment["GPUWARD_SIM_START_S"] = "0.5"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))  # bound and not listening, without SO_REUSEADDR: a bind beside it fails
        daemon.ports = other.getsockname()[1]
        daemon.start('[pool.x]\nmodel = "org/m"\n[pool.x.restart]\ndelay-first-s = 0.05\n')
        ready = daemon.until("x/0", lambda worker: worker["ready"])

    assert ready["port"] != daemon.ports
    assert ready["last_exit"]["cause"] == "port-conflict"


def test_a_second_daemon_on_the_same_socket_is_refused_and_the_first_untouched(daemon: DaemonUnderTest) -> None:
    daemon.start(SLEEPERS)
    before = daemon.all_ready()
    other = DaemonUnderTest()
    other.socket = daemon.socket

    other.start(SLEEPERS, wait=False)
    assert other.process is not None
    code = other.process.wait(20)

    assert code == 1
    assert f"the gpuward with pid {daemon.process.pid if daemon.process else 0}" in other.log()
    assert {name: worker["pid"] for name, worker in daemon.workers().items()} == {
        name: worker["pid"] for name, worker in before.items()
    }
    other.close()


def test_a_socket_path_too_long_for_the_kernel_is_refused_with_the_numbers(daemon: DaemonUnderTest) -> None:
    daemon.socket = str(daemon.root / ("s" * (107 - len(str(daemon.root)))))
    assert len(daemon.socket) == 108

    daemon.start(SLEEPERS, wait=False)
    assert daemon.process is not None
    code = daemon.process.wait(20)

    assert code == 1
    assert "takes at most 107" in daemon.log()


def test_a_bad_fleet_at_the_first_start_ends_with_78_and_names_the_key(daemon: DaemonUnderTest) -> None:
    daemon.start('[pool.x]\nmodel = "m"\ngpus-per-wroker = 2\n', wait=False)
    assert daemon.process is not None

    code = daemon.process.wait(20)

    assert code == 78
    assert "gpus-per-wroker" in daemon.log()
    assert "gpus-per-worker" in daemon.log()


def test_no_driver_is_said_and_nothing_starts_on_no_gpu() -> None:
    daemon = DaemonUnderTest(simulate=None)
    daemon.start('[pool.x]\nmodel = "org/m"\n' + SLEEPERS)

    status = daemon.call("status")
    checked = daemon.ctl("status", "--check")
    daemon.close()

    assert checked.returncode == 3
    assert "is not applied yet" in checked.stdout
    assert status["simulated"] is False
    assert status["inventory"]["state"] == "unavailable"
    assert "libnvidia-ml.so.1" in status["inventory"]["reason"]
    assert status["workers"] == []


def test_gpuctl_tells_the_same_as_json(daemon: DaemonUnderTest) -> None:
    daemon.start(SLEEPERS)
    daemon.all_ready()

    shown = daemon.ctl("status", "-o", "json")

    assert shown.returncode == 0
    assert [worker["name"] for worker in json.loads(shown.stdout)["workers"]] == ["sleeper/0", "sleeper/1"]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_drain_that_vllm_is_not_told_of_is_said_at_plan_and_when_it_is_applied(daemon: DaemonUnderTest) -> None:
    daemon.start()
    daemon.write("f.toml", '[pool.m]\nmodel = "x"\nexecutable = "/bin/true"\ndrain-timeout-s = 60\nworkers = 1\n')

    planned = daemon.ctl("plan", "f.toml")
    daemon.ctl("apply", "f.toml", "--no-wait")

    assert "drain-timeout-s = 60 does not reach vLLM, requests are cut on stop" in " ".join(planned.stdout.split())
    assert "drain-not-passed" in {event["kind"] for event in daemon.call("events")["events"]}
