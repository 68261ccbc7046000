"""Stories of a fleet file that names some of the pools that run, and of one that says nothing new."""

from __future__ import annotations

import json

import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

pytestmark = pytest.mark.e2e


def a_pool(name: str, more: str = "") -> str:
    """A pool of sleepers without GPUs, unless ``more`` says otherwise."""
    return f"""
[pool.{name}]
engine = "command"
command = ["/bin/sleep", "600"]
ready-after-s = 0.1
stop-timeout-s = 5
{more or "gpus-per-worker = 0"}
"""


def test_a_file_that_does_not_name_a_running_pool_leaves_it_alone_unless_it_is_to_be_pruned(
    daemon: DaemonUnderTest,
) -> None:
    daemon.start(a_pool("old") + a_pool("other"))
    before = daemon.all_ready()
    daemon.write("one.toml", a_pool("new"))

    compared = daemon.ctl("diff", "one.toml")
    applied = daemon.ctl("apply", "one.toml")
    left = daemon.all_ready()
    pruned = daemon.ctl("apply", "one.toml", "--prune")

    told = " ".join(compared.stdout.split())
    assert "pool 'old' is not in the file: its worker old/0 goes on; --prune removes the pool" in told
    assert "1 to start, 2 unchanged" in compared.stdout
    assert (applied.returncode, applied.stderr) == (0, "")
    assert {name: left[name]["pid"] for name in before} == {name: one["pid"] for name, one in before.items()}
    assert (pruned.returncode, "2 to stop, 1 unchanged" in pruned.stdout) == (0, True)
    assert list(daemon.workers()) == ["new/0"]


def test_a_file_that_takes_the_gpus_of_a_pool_which_it_does_not_name_is_refused(daemon: DaemonUnderTest) -> None:
    daemon.start(a_pool("old", "gpus-per-worker = 1"))
    before = daemon.all_ready()["old/0"]
    daemon.write("one.toml", a_pool("new", "gpus = [0]"))

    applied = daemon.ctl("apply", "one.toml")

    assert applied.returncode == 6
    assert "old/0 is not in the file, and the file takes its GPUs away" in applied.stderr
    assert daemon.worker("old/0")["pid"] == before["pid"]


def test_a_reload_of_the_file_of_the_start_prunes_and_says_what(daemon: DaemonUnderTest) -> None:
    daemon.start(a_pool("kept") + a_pool("gone"))
    daemon.all_ready()
    daemon.write("fleet.toml", a_pool("kept"))

    reloaded = daemon.ctl("reload")

    assert reloaded.returncode == 0
    assert "gone/0  stop" in reloaded.stdout
    assert "1 to stop, 1 unchanged" in reloaded.stdout
    eventually(lambda: list(daemon.workers()) == ["kept/0"], within_s=10)


def test_what_says_nothing_new_makes_no_revision(daemon: DaemonUnderTest) -> None:
    daemon.start(a_pool("same", "gpus-per-worker = 0\nworkers = 2"))
    daemon.all_ready()

    scaled = daemon.ctl("scale", "same=2")
    applied = daemon.ctl("apply", "fleet.toml")
    revision = daemon.call("status")["fleet"]["revision"]

    assert (scaled.returncode, applied.returncode, revision) == (0, 0, 1)
    assert scaled.stdout.endswith("nothing to apply: this is revision 1\n")


def test_a_key_without_effect_on_a_process_restarts_nothing(daemon: DaemonUnderTest) -> None:
    daemon.start("[defaults]\ngpu-memory-utilization = 0.9\n" + a_pool("router"))
    before = daemon.all_ready()["router/0"]
    daemon.write("fleet.toml", "[defaults]\ngpu-memory-utilization = 0.5\n" + a_pool("router"))

    compared = json.loads(daemon.ctl("diff", "-o", "json").stdout)
    reloaded = daemon.ctl("reload")

    assert [change["action"] for change in compared["changes"]] == ["keep"]
    assert reloaded.returncode == 0
    assert daemon.worker("router/0")["pid"] == before["pid"]
