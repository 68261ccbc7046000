"""What the real vLLM does when it fails, and what the daemon makes of it. On CPU, opt-in: `make e2e-vllm`.

The stories have the settings that a fleet file gets when it says nothing. Their figures stand together at the end.
GPUs are simulated: where memory is short here, it is the host's, which the CPU backend treats as a GPU's.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.e2e.real_vllm import (
    ARGUMENTS,
    KV_CACHE,
    MARKS,
    READY_WITHIN_S,
    Deaths,
    causes_of_a_silent_death,
    engine_core,
    family,
    fleet_of,
    health,
    last_run,
    started_s,
    until_answered,
    write_model,
)

pytestmark = MARKS

Worker = dict[str, Any]
FROZEN_FOUND_WITHIN_S = 120.0
LONGEST = 2048
"""Tokens that the tiny model knows, and more than the cache of a `too_long` pool holds."""


@dataclass(frozen=True)
class Figure:
    """What a story took, both from the fault, or from the start of the run that could not work.

    ``found_s``: to the verdict; ``serving_s``: to an answer in full.
    """

    story: str
    cause: str
    found_s: float
    serving_s: float | None = None

    def line(self) -> str:
        serving = f"{self.serving_s:7.1f} s" if self.serving_s is not None else f"{'-':>9}"
        return f"{self.story:42} {self.cause:20} {self.found_s:7.1f} s {serving}"


@pytest.fixture(scope="module")
def figures() -> Iterator[list[Figure]]:
    """Where the stories leave their figures."""
    left: list[Figure] = []
    yield left
    lines = (figure.line() for figure in left)
    print(f"\n\n{'story':42} {'cause':20} {'found':>9} {'serving':>9}", *lines, sep="\n")


@pytest.fixture(scope="module")
def serving() -> Iterator[DaemonUnderTest]:
    """A daemon with one worker that serves the tiny model, `m/0`; each story leaves it serving."""
    under_test = DaemonUnderTest("1xH100-80GB")
    try:
        under_test.start(fleet_of(m={"model": str(write_model(under_test))}))
        under_test.all_ready(READY_WITHIN_S)
        yield under_test
    finally:
        under_test.close()


@dataclass(frozen=True)
class Blow:
    """A signal to the engine of a run that served: the worker as it was, its processes, when it was struck."""

    daemon: DaemonUnderTest
    before: Worker
    deaths: Deaths
    at_s: float


def strike_engine(daemon: DaemonUnderTest, number: signal.Signals) -> Blow:
    before = daemon.until("m/0", lambda worker: worker["ready"], within_s=READY_WITHIN_S)
    tree = family(before["pid"])
    deaths = Deaths(tree)
    os.kill(engine_core(tree).pid, number)
    return Blow(daemon, before, deaths, time.monotonic())


def recover(blow: Blow, story: str, found_within_s: float) -> tuple[Figure, dict[str, Any]]:
    """Return what it took until the next run answered, and the record of the one that was struck.

    AssertionError where anything of the old run was alive when the next one began.
    """
    daemon, following = blow.daemon, blow.before["run"] + 1
    daemon.until("m/0", lambda worker: worker["phase"] != "ready", within_s=found_within_s)
    found_s = time.monotonic() - blow.at_s
    after = daemon.until("m/0", lambda worker: worker["run"] == following and worker["pid"] is not None, within_s=60)
    began_at_s = started_s(after["pid"])
    until_answered(daemon, "m/0", daemon.root / "tiny", following)
    serving_s = time.monotonic() - blow.at_s
    assert blow.deaths.last_s() <= began_at_s
    assert after["restarts"] == blow.before["restarts"] + 1
    run = last_run(daemon, "m/0")
    return Figure(story, run["cause"], found_s, serving_s), run


def until_begun(daemon: DaemonUnderTest, name: str) -> float:
    """Return the moment at which the first run was there."""
    daemon.until(name, lambda worker: worker["run"] == 1 and worker["pid"] is not None)
    return time.monotonic()


def until_ended(daemon: DaemonUnderTest, name: str) -> Worker:
    """Return the worker as the end of its first run was judged."""
    return daemon.until(name, lambda worker: worker["last_exit"] is not None, within_s=READY_WITHIN_S)


def assert_given_up(worker: Worker) -> None:
    """It failed with its first run, and nothing will start it but a command."""
    assert (worker["phase"], worker["goal"]) == ("failed", "up")
    assert (worker["run"], worker["restarts"], worker["next_start_at"]) == (1, 0, None)
    assert "not tried again" in worker["reason"]


def too_long(model: Path) -> dict[str, Any]:
    """A pool whose KV cache holds less than one request of full length."""
    cache = ["--kv-cache-memory-bytes", str(256 * 2**10)]
    return {"model": str(model), "max-model-len": LONGEST, "extra-args": [*ARGUMENTS, *cache]}


def length_that_vllm_named(worker: Worker) -> int:
    """The one in the line that is kept as evidence; it hangs on the model and on the size of a block."""
    named = re.search(r"estimated maximum model length is (\d+)", worker["last_exit"]["evidence"][0])
    assert named is not None, worker["last_exit"]
    length = int(named[1])
    assert 0 < length < LONGEST
    return length


def test_an_unknown_flag_is_a_config_error_and_is_not_tried_again(
    daemon: DaemonUnderTest, figures: list[Figure]
) -> None:
    flags = [*ARGUMENTS, *KV_CACHE, "--enable-prefix-cacheing"]

    daemon.start(fleet_of(flag={"model": str(write_model(daemon)), "extra-args": flags}))
    began_s = until_begun(daemon, "flag/0")
    failed = until_ended(daemon, "flag/0")
    figures.append(Figure("bad flag", failed["last_exit"]["cause"], time.monotonic() - began_s))

    assert_given_up(failed)
    assert (failed["last_exit"]["cause"], failed["last_exit"]["code"]) == ("config-error", 2)
    assert failed["reason"] == (
        "this vLLM does not know --enable-prefix-cacheing (exit code 2); not tried again; "
        "correct the pool and apply it again, then gpuctl start flag/0"
    )
    assert "unrecognized arguments: --enable-prefix-cacheing" in failed["last_exit"]["evidence"][0]
    assert "this vLLM does not know --enable-prefix-cacheing" in daemon.ctl("why", "flag/0").stdout
    assert daemon.ctl("status", "--check").returncode == 3


def test_a_model_that_is_not_there_is_named_and_not_tried_again(daemon: DaemonUnderTest, figures: list[Figure]) -> None:
    absent = daemon.root / "absent"

    daemon.start(fleet_of(directory={"model": str(absent)}, hub={"model": "org/absent"}))
    began_s = until_begun(daemon, "directory/0")
    no_directory = until_ended(daemon, "directory/0")
    figures.append(Figure("model missing", no_directory["last_exit"]["cause"], time.monotonic() - began_s))
    no_download = until_ended(daemon, "hub/0")

    for worker in (no_directory, no_download):
        assert_given_up(worker)
        assert (worker["last_exit"]["cause"], worker["last_exit"]["code"]) == ("config-error", 1)
    assert no_directory["reason"].startswith(f"there is no model at '{absent}' (exit code 1); not tried again")
    assert any(str(absent) in line for line in no_directory["last_exit"]["evidence"])
    assert no_download["reason"].startswith("the model is not in the local cache and downloads are off or impossible")
    assert "download the model first, or set 'model' to a directory" in no_download["reason"]


def test_a_context_longer_than_the_kv_cache_fails_with_the_length_that_fits(
    daemon: DaemonUnderTest, figures: list[Figure]
) -> None:
    daemon.start(fleet_of(long=too_long(write_model(daemon))))
    began_s = until_begun(daemon, "long/0")
    failed = until_ended(daemon, "long/0")
    figures.append(Figure("KV cache too small", failed["last_exit"]["cause"], time.monotonic() - began_s))

    length = length_that_vllm_named(failed)
    assert_given_up(failed)
    assert (failed["last_exit"]["cause"], failed["last_exit"]["code"]) == ("kv-cache-too-small", 1)
    assert failed["reason"].startswith(f"the KV cache holds {length} tokens, one request may have {LONGEST} (exit code")
    assert failed["reason"].endswith(
        f"set max-model-len to {length} or less, or raise gpu-memory-utilization, then gpuctl start long/0"
    )


def test_a_context_that_may_shrink_becomes_the_length_that_vllm_named(
    daemon: DaemonUnderTest, figures: list[Figure]
) -> None:
    model = write_model(daemon)

    daemon.start(fleet_of(long={**too_long(model), "on-oom": "adapt", "min-max-model-len": 128}))
    began_s = until_begun(daemon, "long/0")
    ended = until_ended(daemon, "long/0")
    found_s = time.monotonic() - began_s
    worker = until_answered(daemon, "long/0", model, run=2)
    figures.append(
        Figure("KV cache too small, adapts", ended["last_exit"]["cause"], found_s, time.monotonic() - began_s)
    )
    arguments = Path(f"/proc/{worker['pid']}/cmdline").read_text().split("\0")

    length = length_that_vllm_named(ended)
    assert ended["last_exit"]["cause"] == "kv-cache-too-small"
    assert f"comes back smaller: max-model-len {LONGEST} -> {length}" in ended["reason"]
    assert worker["adapted"] == [f"max-model-len {LONGEST} -> {length}"]
    assert arguments[arguments.index("--max-model-len") + 1] == str(length)
    assert daemon.ctl("why", "--fix", "long/0").stdout == f"[pool.long]\nmax-model-len = {length}\n"


def test_more_memory_than_is_free_is_waited_for_and_found_when_the_pool_asks_for_less(
    daemon: DaemonUnderTest, figures: list[Figure]
) -> None:
    model = write_model(daemon)
    # the cache is as small as its blocks; without these vLLM would in earnest take the share of the host's memory
    pool = {"model": str(model), "extra-args": [*ARGUMENTS, "--num-gpu-blocks-override", "64"]}
    held = bytearray(psutil.virtual_memory().total // 50)  # so that 0.99 is too much on a large host too
    held[:: os.sysconf("SC_PAGE_SIZE")] = b"\1" * -(-len(held) // os.sysconf("SC_PAGE_SIZE"))

    daemon.start(fleet_of(m={**pool, "gpu-memory-utilization": 0.99}))
    began_s = until_begun(daemon, "m/0")
    ended = until_ended(daemon, "m/0")
    found_s = time.monotonic() - began_s
    run = last_run(daemon, "m/0")
    waiting = daemon.until("m/0", lambda worker: worker["phase"] != "releasing")
    less = daemon.write("less.toml", fleet_of(m={**pool, "gpu-memory-utilization": 0.3}))
    applied = daemon.ctl("apply", str(less), "--no-wait")
    until_answered(daemon, "m/0", model, run=2)
    figures.append(
        Figure("utilization above free memory", ended["last_exit"]["cause"], found_s, time.monotonic() - began_s)
    )

    assert (ended["last_exit"]["cause"], ended["last_exit"]["code"]) == ("gpu-busy", 1)
    assert re.match(
        r"[\d.]+ of [\d.]+ GiB were free at the start, gpu-memory-utilization 0\.99 needs [\d.]+ GiB \(exit code 1\)",
        run["reason"],
    )
    assert run["hint"].endswith("if nobody does, lower gpu-memory-utilization")
    assert (waiting["phase"], waiting["next_start_at"] is not None) == ("backoff", True)
    assert waiting["reason"].startswith(run["reason"])
    assert "wait 1 of 10, no failure is counted" in waiting["reason"]
    assert "on startup is less than desired CPU memory utilization" in ended["last_exit"]["evidence"][0]
    assert applied.returncode == 0


def test_a_killed_engine_is_replaced_when_nothing_of_its_run_is_left(
    serving: DaemonUnderTest, figures: list[Figure]
) -> None:
    blow = strike_engine(serving, signal.SIGKILL)

    figure, run = recover(blow, "engine killed", found_within_s=60)
    figures.append(figure)

    assert run["cause"] in causes_of_a_silent_death()
    assert run["code"] == 0
    if run["cause"] == "crash":
        assert run["reason"] == "a process of the engine died without a word while serving (exit code 0)"
    assert "engine core exited unexpectedly" in run["evidence"][0]


def test_a_frozen_engine_is_found_killed_whole_and_replaced(serving: DaemonUnderTest, figures: list[Figure]) -> None:
    blow = strike_engine(serving, signal.SIGSTOP)
    assert health(blow.before["port"]) == 200

    figure, run = recover(blow, "engine frozen", FROZEN_FOUND_WITHIN_S)
    figures.append(figure)

    assert run["cause"] == "hang"
    assert run["reason"] == (
        "it answers /health and has not generated the one token that it was asked for (not within 10 s), "
        "3 looks in a row, one every 10 s"
    )
    assert run["descendants_killed"] >= 1
