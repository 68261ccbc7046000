"""Files for proxies: what is in them, and that they are whole, readable and true of pools that are gone."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from gpuward.host.endpoint_files import Endpoint, PoolEndpoints, write_endpoints
from gpuward.host.hook import run_hook

TWO = PoolEndpoints(
    pool="m",
    model="org/m",
    endpoints=(
        Endpoint(worker="m/0", url="http://127.0.0.1:20000", since="2026-01-01T00:00:00Z"),
        Endpoint(worker="m/1", url="https://[::1]:20064", since="2026-01-01T00:00:00Z"),
    ),
)


def test_the_ready_workers_are_listed_for_each_reader(tmp_path: Path) -> None:
    changed = write_endpoints(tmp_path, [TWO])

    document = json.loads((tmp_path / "m.json").read_text())
    targets = json.loads((tmp_path / "prometheus.json").read_text())
    assert changed
    assert (document["schema_version"], document["pool"], document["model"]) == (1, "m", "org/m")
    assert document["endpoints"][1] == {
        "worker": "m/1",
        "url": "https://[::1]:20064",
        "since": "2026-01-01T00:00:00Z",
    }
    assert "upstream m {" in (tmp_path / "m.nginx.conf").read_text()
    assert "server [::1]:20064;" in (tmp_path / "m.nginx.conf").read_text()
    assert targets[1]["targets"] == ["[::1]:20064"]
    assert targets[1]["labels"] == {"pool": "m", "worker": "m/1", "__scheme__": "https"}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_what_has_not_changed_is_not_written(tmp_path: Path) -> None:
    write_endpoints(tmp_path, [TWO])

    assert not write_endpoints(tmp_path, [TWO])


def test_a_pool_that_is_gone_lists_nobody_and_files_of_others_are_left_alone(tmp_path: Path) -> None:
    write_endpoints(tmp_path, [TWO])
    (tmp_path / "other.nginx.conf").write_text("upstream other { server 10.0.0.1; }\n")

    write_endpoints(tmp_path, [])

    assert json.loads((tmp_path / "m.json").read_text())["endpoints"] == []
    assert "server 127.0.0.1:9 down;" in (tmp_path / "m.nginx.conf").read_text()
    assert json.loads((tmp_path / "prometheus.json").read_text()) == []
    assert "10.0.0.1" in (tmp_path / "other.nginx.conf").read_text()


def test_a_command_that_fails_is_told_with_its_last_line() -> None:
    assert run_hook(["/bin/sh", "-c", "echo a; echo b >&2; exit 3"], 5.0) == "/bin/sh exited with code 3: b"
    assert run_hook(["/bin/true"], 5.0) == ""
    assert "exited with code 127" in run_hook(["/does/not/exist"], 5.0)


def test_a_command_that_does_not_end_is_killed_and_one_that_prints_without_end_is_bounded() -> None:
    began_s = time.monotonic()

    endless = run_hook([sys.executable, "-c", "while True: print('x' * 1000)"], 0.5)
    sleeping = run_hook(["/bin/sleep", "60"], 0.2)

    assert "did not end within 0.5 s and was killed" in endless
    assert len(endless) < 3000
    assert sleeping == "/bin/sleep did not end within 0.2 s and was killed"
    assert time.monotonic() - began_s < 5


def test_what_a_command_leaves_running_is_not_waited_for() -> None:
    began_s = time.monotonic()

    assert run_hook(["/bin/sh", "-c", "sleep 3 & exit 0"], 5.0) == ""
    assert time.monotonic() - began_s < 2
