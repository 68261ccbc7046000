"""As root under a real systemd: every run in a scope of its own, limited; one boot for all tests of this file.

The memory controller of the machine may be of cgroup v1: then systemd limits and the kernel kills, but no scope counts.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.systemd.private import NEEDS_A_BOOT, run_inside

pytestmark = NEEDS_A_BOOT


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    seen: dict[str, Any] = json.loads(run_inside("scopes_under_systemd.py"))
    return seen


def test_keeper_and_worker_live_in_a_scope_outside_of_the_service(seen) -> None:
    scope = "/gpuward.slice/gpuward-sleeper.0.1.scope"

    assert seen["refusal"] == ""
    assert (seen["keeper"], seen["worker"]) == (scope, scope)


def test_the_keeper_is_the_process_that_was_started_and_holds_the_workers_lock(seen) -> None:
    assert seen["same_pid"]
    assert seen["kept"]


def test_systemd_limits_the_scope_and_a_worker_beyond_it_is_killed_alone(seen) -> None:
    assert seen["limit"] == str(96 * 1024 * 1024)
    assert (seen["hog/0"]["signal"], seen["hog/0"]["error"]) == (9, "")
    assert seen["hog/0"]["max_rss_bytes"] < 110 * 1024 * 1024
    assert seen["sleeper/0"]["at_s"] > seen["hog/0"]["at_s"]


def test_an_ended_run_leaves_no_unit(seen) -> None:
    assert seen["left"] == ""
