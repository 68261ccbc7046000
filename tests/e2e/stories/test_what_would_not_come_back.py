"""Stories of commands that would stop what cannot come back, and of waits that only a person can end."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import time

import pytest
from tests.e2e.daemon import CTL, DaemonUnderTest
from tests.waiting import eventually

pytestmark = pytest.mark.e2e

SLEEPER = """
[pool.{name}]
engine = "command"
command = ["/bin/sleep", "600"]
ready-after-s = 0.1
stop-timeout-s = 5
min-ready-s = 0
gpus-per-worker = {gpus}
{more}
"""


def a_pool(name: str, *, gpus: int = 1, more: str = "") -> str:
    return SLEEPER.format(name=name, gpus=gpus, more=more)


def pids(daemon: DaemonUnderTest) -> dict[str, int]:
    return {name: worker["pid"] for name, worker in daemon.workers().items()}


def test_a_restart_on_a_cordoned_gpu_is_refused_before_anything_stops_unless_it_is_forced(
    daemon: DaemonUnderTest,
) -> None:
    daemon.start(a_pool("x"))
    daemon.all_ready()
    before = pids(daemon)
    daemon.ctl("gpu", "cordon", "0", "--reason", "burns in")

    refused = daemon.ctl("restart", "x/0")
    rolled = daemon.ctl("roll", "x")
    untouched = pids(daemon)
    forced = daemon.ctl("restart", "x/0", "--force")

    assert refused.returncode == rolled.returncode == 6
    assert "nothing was stopped: x/0 would not come back: GPU 0 is cordoned (burns in, by " in refused.stderr
    assert untouched == before
    assert forced.returncode == 6, "what only a person can end is not waited for"
    assert "cannot restart x/0: GPU 0 is cordoned (burns in, by " in forced.stderr


def test_a_restart_below_a_stopped_dependency_is_refused_and_a_start_does_not_wait(daemon: DaemonUnderTest) -> None:
    daemon.start(a_pool("prefill", gpus=0) + a_pool("decode", gpus=0, more='depends-on = ["prefill"]'))
    daemon.all_ready()
    daemon.ctl("stop", "prefill")
    before = pids(daemon)

    refused = daemon.ctl("restart", "decode")
    untouched = pids(daemon)
    daemon.ctl("stop", "decode")
    started = daemon.ctl("start", "decode")

    assert refused.returncode == 6
    assert "decode/0 would not come back: prefill/0, which it depends on, is stopped by command" in refused.stderr
    assert untouched == before
    assert (started.returncode, "gpuctl start prefill/0" in started.stderr) == (6, True)


def test_a_definition_that_does_not_launch_stops_nobody(daemon: DaemonUnderTest) -> None:
    daemon.start(a_pool("x", gpus=0))
    daemon.all_ready()
    before = pids(daemon)
    daemon.write("new.toml", a_pool("x", gpus=0).replace("/bin/sleep", "/bin/no-such-program"))

    applied = daemon.ctl("apply", "new.toml")

    assert applied.returncode == 6
    assert "x/0 would not come back: there is no program /bin/no-such-program" in applied.stderr
    assert (pids(daemon), daemon.call("status")["fleet"]["revision"]) == (before, 1)


def test_a_dry_run_says_what_is_stopped_for_how_long_and_who_depends_on_it(daemon: DaemonUnderTest) -> None:
    daemon.start(a_pool("prefill", gpus=0) + a_pool("decode", gpus=0, more='depends-on = ["prefill"]'))
    daemon.all_ready()
    before = pids(daemon)

    stop = " ".join(daemon.ctl("stop", "prefill", "--dry-run").stdout.split())
    roll = " ".join(daemon.ctl("roll", "decode", "--dry-run").stdout.split())

    assert "stops 1 ready worker: prefill/0; pool prefill has no ready worker then" in stop
    assert "others depend on what is stopped and go on without it: decode/0" in stop
    assert "restarts 1 ready worker: decode/0; pool decode has no ready worker meanwhile; it takes about 0 s" in roll
    assert pids(daemon) == before


def on_a_terminal(daemon: DaemonUnderTest, answer: bytes, *words: str) -> tuple[int, str]:
    """Run gpuctl on a terminal of its own and answer its question; exit code and what was shown."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [CTL, "--socket", daemon.socket, *words],
        stdin=its,
        stdout=its,
        stderr=its,
        cwd=daemon.root,
        env={**daemon.environment, "COLUMNS": "200"},
    )
    os.close(its)
    shown = b""
    until_s = time.monotonic() + 20
    while b"[y/N]" not in shown and time.monotonic() < until_s:
        shown += os.read(ours, 4096)
    os.write(ours, answer)
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    return process.wait(timeout=20), shown.decode()


def test_on_a_terminal_what_stops_workers_that_serve_is_asked_for(daemon: DaemonUnderTest) -> None:
    daemon.start(a_pool("x", more="workers = 2"))
    daemon.all_ready()
    before = pids(daemon)

    no, shown = on_a_terminal(daemon, b"n\n", "restart", "x")
    untouched = pids(daemon)
    yes, _ = on_a_terminal(daemon, b"y\n", "restart", "x")

    assert (no, untouched) == (1, before)
    assert "restarts 2 ready workers at once: x/0, x/1" in shown
    assert "pool x has no ready worker meanwhile" in shown
    assert (yes, [worker["run"] for worker in daemon.workers().values()]) == (0, [2, 2])


def test_drift_after_another_file_was_applied_does_not_advise_to_undo_it(daemon: DaemonUnderTest) -> None:
    daemon.start(a_pool("x", gpus=0))
    daemon.all_ready()
    daemon.write("phases.toml", a_pool("x", gpus=0, more="workers = 2"))
    daemon.ctl("apply", "phases.toml")

    told = " ".join(daemon.ctl("status").stdout.split())
    gpus = daemon.ctl("gpus").stdout
    daemon.write("fleet.toml", "[pool.x\n")
    broken = eventually(lambda: " ".join(daemon.ctl("status").stdout.split()), within_s=5)

    assert f"DRIFT: {daemon.root}/fleet.toml differs from the applied revision 2; gpuctl diff shows how" in told
    assert "gpuctl reload would undo revision 2 (phases.toml)" in told
    assert "DRIFT" not in gpus
    assert "fix the file, then gpuctl diff" in broken


def test_a_scale_down_keeps_the_worker_that_serves_until_one_that_stays_does(daemon: DaemonUnderTest) -> None:
    flag = daemon.root / "go"
    script = f"while [ $0 = 0 ] && [ ! -e {flag} ]; do sleep 0.05; done; echo up; exec sleep 600"
    waits = f'command = ["/bin/sh", "-c", "{script}", "{{index}}"]\nready-log = "^up$"\nworkers = 2'
    text = a_pool("m", gpus=0, more=waits).replace('command = ["/bin/sleep", "600"]\nready-after-s = 0.1\n', "")
    daemon.start(text)
    serving = daemon.until("m/1", lambda worker: worker["ready"])

    daemon.ctl("scale", "m=1", "--no-wait")
    meanwhile = daemon.worker("m/1")
    flag.touch()
    eventually(lambda: list(daemon.workers()) == ["m/0"], within_s=15)

    assert (meanwhile["ready"], meanwhile["pid"]) == (True, serving["pid"])
    assert daemon.worker("m/0")["ready"]


def test_a_scale_down_to_none_that_can_serve_is_refused(daemon: DaemonUnderTest) -> None:
    script = "[ $0 = 1 ] || exit 1; exec sleep 600"
    dies = f'command = ["/bin/sh", "-c", "{script}", "{{index}}"]\nready-after-s = 0.3\nworkers = 2'
    text = a_pool("m", gpus=0, more=f"{dies}\n[pool.m.restart]\nmax-failures = 0")
    daemon.start(text.replace('command = ["/bin/sleep", "600"]\nready-after-s = 0.1\n', ""))
    daemon.until("m/0", lambda worker: worker["phase"] == "failed")
    daemon.until("m/1", lambda worker: worker["ready"])

    refused = daemon.ctl("scale", "m=1")

    assert refused.returncode == 6
    assert "m/1 is the only one that serves: nobody of pool m would serve then: m/0 has failed" in refused.stderr
    assert daemon.worker("m/1")["ready"]


def test_a_port_that_a_stranger_has_and_a_model_that_is_not_there_stop_nobody(daemon: DaemonUnderTest) -> None:
    program = daemon.write("vllm", "#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    served = f'[pool.v]\nengine = "vllm"\nexecutable = "{program}"\nmodel = "{daemon.root}"\nstop-timeout-s = 5\n'
    daemon.start(a_pool("x", gpus=0) + served)
    daemon.until("v/0", lambda worker: worker["phase"] == "starting" and worker["pid"])
    daemon.until("x/0", lambda worker: worker["ready"])
    before = pids(daemon)

    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        daemon.write("port.toml", a_pool("x", gpus=0, more=f"port = {port}"))
        by_port = daemon.ctl("apply", "port.toml")
    daemon.write("model.toml", served.replace(f'model = "{daemon.root}"', 'model = "/no/such/model"'))
    by_model = daemon.ctl("apply", "model.toml")

    assert (by_port.returncode, by_model.returncode) == (6, 6)
    assert f"x/0 would not come back: port {port}: pid " in by_port.stderr
    assert "v/0 would not come back: there is no model at /no/such/model" in by_model.stderr
    assert pids(daemon) == before
