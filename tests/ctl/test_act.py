from __future__ import annotations

import json
from typing import Any

import pytest


@pytest.fixture
def started(daemon: Any) -> None:
    for verb in ("start", "stop", "restart"):
        daemon.answers(verb, {"operation": "op-1", "workers": ["decode/0", "decode/1"]})


@pytest.mark.usefixtures("started")
def test_start_waits_and_tells_every_change_as_a_line(gpuctl: Any, daemon: Any, documents: Any) -> None:
    daemon.answers(
        "operation",
        documents.operation("running", ("decode/0", "pending", "starting"), ("decode/1", "pending", "blocked")),
        documents.operation("running", ("decode/0", "done", "ready"), ("decode/1", "pending", "blocked"), version=2),
        documents.operation("done", ("decode/0", "done", "ready"), ("decode/1", "done", "ready"), version=3),
    )

    code, out, err = gpuctl("start", "decode")

    assert (code, err) == (0, "")
    *lines, end = out.splitlines()
    assert lines == [
        "decode/0: starting",
        "decode/1: blocked (decode/1 is blocked, as 1 of 2)",
        "decode/0: ready",
        "decode/1: ready",
    ]
    assert end.startswith("start: 2 workers done in 0.")
    assert daemon.args_of("start") == [{"targets": ["decode"], "all": False}]
    assert [args["seen"] for args in daemon.args_of("operation")] == [0, 1, 2]


@pytest.mark.usefixtures("started")
def test_on_a_terminal_progress_is_one_line_that_is_overwritten(gpuctl: Any, daemon: Any, documents: Any) -> None:
    long = documents.operation("running", ("decode/0", "done", "ready"), ("decode/1", "pending", "starting"))
    long["workers"][1]["reason"] = "loading weights, " * 20
    done = documents.operation("done", ("decode/0", "done", "ready"), ("decode/1", "done", "ready"), version=2)
    daemon.answers("operation", long, done)

    _, out, _ = gpuctl("start", "decode", "--color", "never", terminal=80)

    pieces = out.split("\r\x1b[K")
    assert pieces[1].startswith("start: 1 of 2 workers done, 0.0 s; decode/1: starting (loading weights,")
    assert max(map(len, pieces)) < 80
    assert "\n" not in "".join(pieces[:-1])
    assert pieces[-1].startswith("start: 2 workers done in")
    assert max(args["wait_s"] for args in daemon.args_of("operation")) <= 1


@pytest.mark.usefixtures("started")
def test_a_failed_worker_is_told_with_its_reason_and_last_log_lines(gpuctl: Any, daemon: Any, documents: Any) -> None:
    daemon.answers(
        "operation", documents.operation("failed", ("decode/0", "done", "ready"), ("decode/1", "failed", "failed"))
    )
    daemon.answers("logs", documents.log("loading\nCUDA out of \x1b[1mmemory\n"))

    code, out, err = gpuctl("start", "--all")

    assert code == 1
    assert "start: 1 of 2 workers done" in out
    assert err.splitlines() == [
        "gpuctl: cannot start decode/1: decode/1 is failed, as 1 of 2",
        "  | loading",
        "  | CUDA out of  [1mmemory",
    ]
    assert daemon.args_of("logs")[0]["worker"] == "decode/1"


@pytest.mark.usefixtures("started")
def test_a_failed_worker_is_told_with_the_lines_that_tell_why_where_they_are_known(
    gpuctl: Any, daemon: Any, documents: Any
) -> None:
    operation = documents.operation("failed", ("decode/1", "failed", "failed"))
    operation["workers"][0]["evidence"] = ["ValueError: first cause"]
    daemon.answers("operation", operation)

    _, _, err = gpuctl("start", "--all")

    assert err.splitlines()[1:] == ["  | ValueError: first cause"]
    assert daemon.args_of("logs") == []


@pytest.mark.usefixtures("started")
def test_a_failed_worker_without_a_log_is_told_all_the_same(gpuctl: Any, daemon: Any, documents: Any) -> None:
    daemon.answers("operation", documents.operation("failed", ("decode/1", "failed", "failed")))
    daemon.refuses("logs", "no-such-worker")

    code, _, err = gpuctl("start", "--all")

    assert (code, len(err.splitlines())) == (1, 1)


@pytest.mark.usefixtures("started")
def test_a_timeout_exits_124_and_says_who_is_not_there_yet(gpuctl: Any, daemon: Any, documents: Any) -> None:
    daemon.answers(
        "operation", documents.operation("running", ("decode/0", "done", "ready"), ("decode/1", "pending", "starting"))
    )

    code, _, err = gpuctl("restart", "decode", "--timeout", "0.05")

    assert code == 124
    assert err == (
        "gpuctl: timed out after 0.05 s, start of 1 worker still in progress: "
        "decode/1: starting (decode/1 is starting, as 1 of 2)\n"
    )
    assert all(args["wait_s"] <= 0.05 for args in daemon.args_of("operation"))


@pytest.mark.usefixtures("started")
def test_no_wait_returns_at_once(gpuctl: Any, daemon: Any) -> None:
    code, out, _ = gpuctl("stop", "decode/0", "--no-wait", "decode/1")

    assert (code, out) == (0, "stop: told to 2 workers\n")
    assert daemon.args_of("operation") == []
    assert daemon.args_of("stop") == [{"targets": ["decode/0", "decode/1"], "all": False}]


@pytest.mark.usefixtures("started")
def test_for_machines_the_end_of_the_operation_is_all_of_stdout(gpuctl: Any, daemon: Any, documents: Any) -> None:
    running = documents.operation("running", ("decode/0", "pending", "starting"))
    done = documents.operation("done", ("decode/0", "done", "ready"), version=2)

    daemon.answers("operation", running, done)
    document = json.loads(gpuctl("start", "decode", "-o", "json")[1])
    daemon.answers("operation", running, done)
    names = gpuctl("start", "decode", "-o", "name")[1]

    assert document == {"schema_version": 1, **done}
    assert names == "decode/0\n"


@pytest.mark.parametrize("arguments", [("start",), ("stop", "--all", "decode"), ("restart",)])
def test_names_or_all_but_not_neither_and_not_both(gpuctl: Any, daemon: Any, arguments: tuple[str, ...]) -> None:
    code, out, err = gpuctl(*arguments)

    assert (code, out, daemon.asked) == (2, "", [])
    assert "--all" in err


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "soon", "", "5d"])
def test_a_timeout_that_is_no_duration_is_a_usage_error(gpuctl: Any, daemon: Any, timeout: str) -> None:
    code, _, err = gpuctl("start", "--all", f"--timeout={timeout}")

    assert (code, daemon.asked) == (2, [])
    assert "is no duration" in err


def test_durations_have_units() -> None:
    from gpuward.ctl.arguments import seconds

    assert [seconds(text) for text in ("90", "0.5s", "1.5m", "2h")] == [90.0, 0.5, 90.0, 7200.0]
