from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FLEET = (
    '[pool.decode]\nengine = "command"\ncommand = ["sleep", "9"]\ngpus-per-worker = 1\nworkers = 2\nready-after-s = 0\n'
)


@pytest.fixture
def fleet_file(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET)
    return path


def test_plan_asks_the_daemon_with_text_name_and_absolute_directory(
    gpuctl: Any, daemon: Any, documents: Any, fleet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answers("plan", documents.plan("decode/0", "decode/1", warnings=("GPU 2 is left free",)))
    monkeypatch.chdir(fleet_file.parent)

    code, out, err = gpuctl("plan", "fleet.toml")

    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "WORKER    GPUS  CLAIM",
        "decode/0  0     68.0 GiB per GPU",
        "decode/1  1     68.0 GiB per GPU",
        "warning: GPU 2 is left free (split-range)",
        "2 workers on 2 of 8 GPUs",
    ]
    assert daemon.asked == [("plan", {"text": FLEET, "name": "fleet.toml", "directory": str(fleet_file.parent)})]


def test_a_refused_plan_exits_6_with_every_problem_on_stderr(
    gpuctl: Any, daemon: Any, documents: Any, fleet_file: Path
) -> None:
    refused = documents.plan(problems=("cannot place pool 'decode': 3 x 3 = 9 of 8", "another"))
    daemon.answers("plan", refused)

    code, out, err = gpuctl("plan", str(fleet_file))
    json_code, json_out, _ = gpuctl("plan", str(fleet_file), "-o", "json")

    assert (code, json_code, out) == (6, 6, "")
    assert err.splitlines() == [
        "gpuctl: cannot place pool 'decode': 3 x 3 = 9 of 8 (too-few-gpus)",
        "gpuctl: another (too-few-gpus)",
    ]
    assert json.loads(json_out) == refused


def test_plan_for_machines_keeps_warnings_off_stdout(
    gpuctl: Any, daemon: Any, documents: Any, fleet_file: Path
) -> None:
    daemon.answers("plan", documents.plan("decode/0", warnings=("GPU 2 is left free",)))

    code, out, err = gpuctl("plan", str(fleet_file), "-o", "name")

    assert (code, out) == (0, "decode/0\n")
    assert err == "gpuctl: warning: GPU 2 is left free (split-range)\n"


def test_plan_with_simulate_asks_no_daemon(gpuctl: Any, daemon: Any, fleet_file: Path) -> None:
    code, out, _ = gpuctl("plan", str(fleet_file), "--simulate", "2xL40S-48GB", "-o", "json")

    document = json.loads(out)
    assert (code, daemon.asked) == (0, [])
    assert [worker["gpus"] for worker in document["workers"]] == [[0], [1]]
    assert (document["gpus_needed"], document["gpus_available"]) == (2, 2)


def test_plan_without_a_daemon_says_so_and_plans_on_this_host(gpuctl: Any, fleet_file: Path, tmp_path: Path) -> None:
    code, out, err = gpuctl("plan", str(fleet_file), "--socket", str(tmp_path / "none"), "-o", "json")

    document = json.loads(out)
    assert code == (0 if document["ok"] else 6)
    assert err.startswith("gpuctl: planned without a daemon, with the GPUs of this host: cannot reach gpuward")


def test_a_file_that_does_not_decode_is_a_refused_plan_with_its_problems(gpuctl: Any, tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text("[pool.decode]\nengine = 'simulated'\nworkerz = 2\n")

    code, out, err = gpuctl("plan", str(path), "--simulate", "8xH100-80GB", "-o", "json")

    document = json.loads(out)
    assert (code, document["ok"], document["workers"], document["gpus_available"]) == (6, False, [], 8)
    assert [(one["code"], one["pool"]) for one in document["problems"]] == [("unknown-key", "decode")]
    assert "workerz" in err


def test_a_plan_without_a_daemon_knows_the_host_file_and_checks_ports(gpuctl: Any, tmp_path: Path) -> None:
    fleet, host = tmp_path / "fleet.toml", tmp_path / "gpuward.toml"
    fleet.write_text(
        "[pool.a]\nengine = 'simulated'\nworkers = 2\nport = 8100\n[pool.b]\nengine = 'simulated'\nport = 8101\n"
    )
    host.write_text("[inventory]\nexclude = [0]\n")

    with_defaults = json.loads(gpuctl("plan", str(fleet), "--simulate", "4xL40S-48GB", "-o", "json")[1])
    code, out, _ = gpuctl("plan", str(fleet), "--simulate", "4xL40S-48GB", "--config", str(host), "-o", "json")
    missing = gpuctl("plan", str(fleet), "--simulate", "4xL40S-48GB", "--config", str(tmp_path / "none"))

    assert [one["code"] for one in with_defaults["problems"]] == ["port-conflict"]
    assert (code, json.loads(out)["gpus_available"]) == (6, 3)
    assert (missing[0], "there is no such file" in missing[2]) == (2, True)


def test_a_simulation_that_is_none_is_a_usage_error(gpuctl: Any, fleet_file: Path) -> None:
    code, out, err = gpuctl("plan", str(fleet_file), "--simulate", "8xH1000")

    assert (code, out) == (2, "")
    assert "8xH1000" in err


@pytest.fixture
def applied(daemon: Any, documents: Any) -> dict[str, Any]:
    """A daemon on which everything that is applied works at once."""
    document: dict[str, Any] = documents.diff(
        documents.plan("decode/0", "decode/1"), ("decode/0", "keep"), ("decode/1", "start")
    )
    daemon.answers("diff", document)
    result = {**document, "revision": 4, "operation": "op-1"}
    for op in ("apply", "reload", "scale"):
        daemon.answers(op, result)
    daemon.answers("operation", documents.operation("done", ("decode/1", "done", "ready"), verb="apply"))
    return result


def test_apply_shows_plan_and_changes_then_applies_what_it_showed_and_waits(
    gpuctl: Any, daemon: Any, applied: dict[str, Any], fleet_file: Path
) -> None:
    code, out, err = gpuctl("apply", str(fleet_file))

    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:-1] == [
        "WORKER    GPUS  CLAIM",
        "decode/0  0     68.0 GiB per GPU",
        "decode/1  1     68.0 GiB per GPU",
        "2 workers on 2 of 8 GPUs",
        "",
        "WORKER    ACTION  REASON",
        "decode/1  start   decode/1 is to start",
        "1 to start, 1 unchanged",
        "applied as revision 4",
        "decode/1: ready",
    ]
    assert lines[-1].startswith("apply: 1 worker done in")
    assert [op for op, _ in daemon.asked] == ["diff", "apply", "operation"]
    assert daemon.args_of("apply")[0]["expected_revision"] == 3


@pytest.mark.usefixtures("applied")
def test_a_dry_run_applies_nothing(gpuctl: Any, daemon: Any, fleet_file: Path) -> None:
    code, out, _ = gpuctl("apply", str(fleet_file), "--dry-run")

    assert code == 0
    assert "decode/1  start" in out
    assert [op for op, _ in daemon.asked] == ["diff"]


def test_a_fleet_that_does_not_fit_is_never_applied(gpuctl: Any, daemon: Any, documents: Any, fleet_file: Path) -> None:
    daemon.answers("diff", documents.diff(documents.plan(problems=("9 of 8",))))

    code, out, err = gpuctl("apply", str(fleet_file))

    assert (code, out, err) == (6, "", "gpuctl: 9 of 8 (too-few-gpus)\n")
    assert [op for op, _ in daemon.asked] == ["diff"]


@pytest.mark.usefixtures("applied")
def test_a_fleet_that_changed_meanwhile_is_not_applied_over(gpuctl: Any, daemon: Any, fleet_file: Path) -> None:
    daemon.refuses("apply", "revision-changed", "cannot apply fleet.toml: the applied revision is 4, not 3")

    code, _, err = gpuctl("apply", str(fleet_file))

    assert (code, err) == (6, "gpuctl: cannot apply fleet.toml: the applied revision is 4, not 3\n")


def test_apply_for_machines_is_one_document_with_the_end_of_the_operation(
    gpuctl: Any, applied: dict[str, Any], fleet_file: Path
) -> None:
    code, out, _ = gpuctl("apply", str(fleet_file), "-o", "json")

    document = json.loads(out)
    assert code == 0
    assert document.pop("finished")["state"] == "done"
    assert document == applied


@pytest.mark.parametrize("arguments", [("reload",), ("scale", "decode=2")])
def test_reload_and_scale_show_apply_and_wait_like_apply(
    gpuctl: Any, daemon: Any, applied: dict[str, Any], arguments: tuple[str, ...]
) -> None:
    code, out, _ = gpuctl(*arguments)

    assert code == 0
    assert "applied as revision 4" in out
    assert daemon.asked[0] == (arguments[0], {"pool": "decode", "workers": 2} if arguments[0] == "scale" else {})
    assert daemon.asked[-1][0] == "operation"


@pytest.mark.usefixtures("applied")
def test_no_wait_does_not_ask_for_the_operation(gpuctl: Any, daemon: Any) -> None:
    code, _, _ = gpuctl("reload", "--no-wait")

    assert (code, daemon.args_of("operation")) == (0, [])


def test_a_change_of_nothing_is_done_at_once(gpuctl: Any, daemon: Any, documents: Any) -> None:
    nothing = documents.diff(documents.plan("decode/0"), ("decode/0", "keep"), revision=4)
    daemon.answers("scale", {**nothing, "operation": None})

    code, out, _ = gpuctl("scale", "decode=1")

    assert code == 0
    assert out.splitlines()[-2:] == ["1 unchanged", "applied as revision 4"]


def test_a_refused_scale_tells_every_problem(gpuctl: Any, daemon: Any, documents: Any) -> None:
    details = documents.diff(documents.plan(problems=("9 of 8", "a second one")))
    daemon.refuses("scale", "refused", "nothing was applied: 9 of 8; a second one", **details)

    code, out, err = gpuctl("scale", "decode=9")
    json_out = gpuctl("scale", "decode=9", "-o", "json")[1]

    assert (code, out) == (6, "")
    assert err == "gpuctl: 9 of 8 (too-few-gpus)\ngpuctl: a second one (too-few-gpus)\n"
    assert json.loads(json_out)["plan"]["ok"] is False


@pytest.mark.parametrize("target", ["decode", "decode=", "=3", "decode=-1", "decode=two", "decode=1.5", "decode=³"])
def test_scale_takes_a_pool_and_a_whole_number(gpuctl: Any, daemon: Any, target: str) -> None:
    code, _, err = gpuctl("scale", target)

    assert (code, daemon.asked) == (2, [])
    assert "is not POOL=N" in err


@pytest.mark.usefixtures("applied")
def test_diff_shows_and_applies_nothing(gpuctl: Any, daemon: Any, fleet_file: Path) -> None:
    code, out, _ = gpuctl("diff", str(fleet_file))

    assert code == 0
    assert "1 to start, 1 unchanged" in out
    assert gpuctl("diff", str(fleet_file), "-o", "name")[1] == "decode/1\n"
    assert {op for op, _ in daemon.asked} == {"diff"}


def test_diff_without_a_file_shows_what_the_file_of_the_start_would_change(
    gpuctl: Any, daemon: Any, documents: Any
) -> None:
    known = {"source": "fleet.toml", "file": "/etc/gpuward/fleet.toml"}
    changes = (("decode/0", "keep"), ("decode/1", "start"))
    difference = documents.diff(documents.plan("decode/0", "decode/1"), *changes, revision=3)
    why = "/etc/gpuward/fleet.toml differs from the applied revision 3"
    daemon.answers("diff", {**difference, **known, "drift": True, "drift_reason": why})

    code, out, err = gpuctl("diff")

    assert (code, err, daemon.args_of("diff")) == (0, "", [{}])
    assert out.splitlines()[0] == why
    assert "decode/1  start" in out
    assert out.splitlines()[-2:] == ["1 to start, 1 unchanged", "gpuctl reload applies the file"]


def test_diff_without_a_file_says_where_nothing_differs(gpuctl: Any, daemon: Any, documents: Any) -> None:
    known = {"source": "fleet.toml", "file": "/etc/gpuward/fleet.toml", "drift": False, "drift_reason": None}
    same = documents.diff(documents.plan("decode/0"), ("decode/0", "keep"), revision=3)
    daemon.answers("diff", {**same, **known})

    told = gpuctl("diff")

    assert told == (0, "no difference: /etc/gpuward/fleet.toml says what runs, revision 3 of fleet.toml\n", "")


def test_diff_without_a_file_tells_the_errors_of_the_file_and_exits_6(gpuctl: Any, daemon: Any, documents: Any) -> None:
    known = {"source": "fleet.toml", "file": "/f.toml", "drift": True, "drift_reason": "/f.toml has errors"}
    daemon.answers("diff", {**documents.diff(documents.plan(problems=("9 of 8",))), **known})

    code, out, err = gpuctl("diff")

    assert (code, out) == (6, "/f.toml has errors\n")
    assert "9 of 8" in err


def test_a_worker_that_is_kept_under_changed_keys_is_shown_with_them(
    gpuctl: Any, daemon: Any, documents: Any, fleet_file: Path
) -> None:
    difference = documents.diff(documents.plan(), ("decode/0", "keep"), ("decode/1", "keep"))
    difference["changes"][1]["keys"] = ["workers"]
    difference["changes"][0] |= {"keys": ["restart"], "reason": "restart changed: applied without a restart"}
    daemon.answers("diff", difference)

    _, out, _ = gpuctl("diff", str(fleet_file))

    assert "decode/0  keep    restart changed: applied without a restart" in out
    assert "decode/1" not in out
    assert "2 unchanged" in out


def test_import_prints_toml_that_plans_to_the_same_devices(gpuctl: Any, tmp_path: Path) -> None:
    dynamo = tmp_path / "agg.yaml"
    dynamo.write_text(
        "VllmWorker:\n  model: m\n  tensor-parallel-size: 1\n"
        "  ServiceArgs:\n    workers: 3\n    resources:\n      gpu: 1\n"
        "PrefillWorker:\n  model: m\n  cuda-visible-device-offset: 3\n"
    )

    code, toml, err = gpuctl("import", str(dynamo))
    (tmp_path / "fleet.toml").write_text(toml)
    plans = [
        json.loads(gpuctl("plan", str(path), "--simulate", "8xH100-80GB", "-o", "json")[1])["workers"]
        for path in (dynamo, tmp_path / "fleet.toml")
    ]

    assert code == 0
    assert all(line.startswith("gpuctl: warning: ") for line in err.splitlines())
    assert plans[0] == plans[1]
    assert [worker["gpus"] for worker in plans[0]] == [[0], [1], [2], [3]]


def test_import_of_a_fleet_file_says_that_it_is_one_already(gpuctl: Any, tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text('[pool.m]\nmodel = "m"\n')

    code, out, err = gpuctl("import", str(tmp_path / "fleet.toml"))

    assert (code, out) == (6, "")
    assert "it is a fleet file already; gpuctl plan and apply take it as it is" in err


def test_import_of_something_else_is_refused(gpuctl: Any, tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n- 2\n")

    code, out, err = gpuctl("import", str(path))

    assert (code, out) == (6, "")
    assert err.startswith(f"gpuctl: cannot import {path}: ")


BadFile = Callable[[Path], Path]


def _directory(path: Path) -> Path:
    return path.parent


def _with(content: bytes) -> BadFile:
    def write(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path, "No such file or directory"),
        (_directory, "it is a directory"),
        (_with(b"\x7fELF\0\0"), "it is binary (a zero byte at 4)"),
        (_with(b"a = '\xff'"), "it is not UTF-8 (byte 0xff at 5)"),
        (_with(b"#" * (512 * 1024 + 1)), "it is larger than 524288 bytes"),
        (lambda _path: Path("/dev/zero"), "it is larger than 524288 bytes"),
        (lambda _path: Path("a\0b"), "embedded null byte"),
    ],
    ids=["missing", "directory", "binary", "latin-1", "huge", "endless", "no path"],
)
@pytest.mark.parametrize("verb", ["plan", "apply", "diff", "import"])
def test_what_is_no_readable_text_file_is_said_and_nothing_is_asked(
    gpuctl: Any, daemon: Any, tmp_path: Path, verb: str, make: BadFile, why: str
) -> None:
    path = make(tmp_path / "fleet.toml")

    code, out, err = gpuctl(verb, str(path))

    assert (code, out, daemon.asked) == (6 if err.startswith("gpuctl: cannot use") else 2, "", [])
    assert err.startswith("gpuctl: cannot ")
    assert why in err


def test_a_dash_is_standard_input_and_relative_to_where_one_stands(
    gpuctl: Any, daemon: Any, documents: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answers("plan", documents.plan("decode/0"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf[pool.a]\r\nworkers = 1\r\n")))

    code, _, _ = gpuctl("plan", "-")

    assert code == 0
    assert daemon.args_of("plan") == [
        {"text": "[pool.a]\nworkers = 1\n", "name": "stdin", "directory": str(Path.cwd())}
    ]
