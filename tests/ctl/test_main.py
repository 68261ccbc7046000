from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpuward.control import protocol
from gpuward.ctl.main import VERBS, full_parser, split_verb

GPUCTL = [sys.executable, "-c", "import sys; from gpuward.ctl.main import main; sys.exit(main())"]
PONG = {"pong": True, "pid": 42, "version": "0.1.0", "protocol": 1, "epoch": 7}


@pytest.mark.parametrize(
    ("argv", "verb", "rest"),
    [
        ([], None, []),
        (["-o", "json"], None, ["-o", "json"]),
        (["--socket", "gpus", "-o", "json", "ping"], "ping", ["--socket", "gpus", "-o", "json"]),
        (["--socket=gpus", "ping", "--color", "never"], "ping", ["--socket=gpus", "--color", "never"]),
        (["stop", "start"], "stop", ["start"]),
        (["--check", "--", "x"], None, ["--check", "--", "x"]),
    ],
)
def test_the_verb_is_the_first_word_that_is_no_option_and_no_value_of_one(
    argv: list[str], verb: str | None, rest: list[str]
) -> None:
    assert split_verb(argv) == (verb, rest)


def test_common_options_stand_before_or_after_the_verb(gpuctl: Any, daemon: Any) -> None:
    daemon.answers("ping", PONG)

    before = gpuctl("-o", "name", "--socket", daemon.socket, "ping")
    after = gpuctl("ping", "--socket", daemon.socket, "-oname")

    assert before == after == (0, "42\n", "")


def test_the_socket_option_beats_the_environment(gpuctl: Any, tmp_path: Path) -> None:
    code, _, err = gpuctl("ping", "--socket", str(tmp_path / "other"))

    assert code == 5
    assert str(tmp_path / "other") in err


def test_an_unknown_verb_is_a_usage_error_that_lists_the_verbs(gpuctl: Any) -> None:
    code, out, err = gpuctl("reboot")

    assert (code, out) == (2, "")
    assert "'reboot'" in err
    assert all(f"'{verb}'" in err for verb in VERBS)


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_every_verb_and_exit_code(gpuctl: Any, option: str) -> None:
    code, out, err = gpuctl(option)

    assert (code, err) == (0, "")
    assert all(f"    {verb} " in out and summary.split(";")[0][:30] in out for verb, summary in VERBS.items())
    assert "124 timed out" in out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_at_80_columns(gpuctl: Any, verb: str) -> None:
    code, out, _ = gpuctl(verb, "--help", terminal=80)

    assert code == 0
    assert out.startswith(f"usage: gpuctl {verb} ")
    assert "--socket PATH" in out
    assert max(map(len, out.splitlines())) <= 80


def test_the_full_parser_takes_what_the_parser_of_one_verb_takes() -> None:
    args = full_parser().parse_args(["--color", "never", "logs", "decode/0", "-n", "5", "-f"])

    assert (args.worker, args.lines, args.follow) == ("decode/0", 5, True)


@pytest.mark.parametrize(
    "argv", [["status", "--chek"], ["-o", "yaml"], ["logs"], ["ping", "x"], ["gpus", "--interval=0"]]
)
def test_arguments_that_make_no_sense_exit_2_and_ask_nothing(gpuctl: Any, daemon: Any, argv: list[str]) -> None:
    code, out, err = gpuctl(*argv)

    assert (code, out, daemon.asked) == (2, "", [])
    assert "usage: gpuctl" in err


@pytest.mark.parametrize(("error", "code"), [*protocol.EXIT_BY_ERROR.items(), ("an-error-of-tomorrow", 1)])
def test_every_error_of_the_daemon_has_its_exit_code(gpuctl: Any, daemon: Any, error: str, code: int) -> None:
    daemon.refuses("stop", error, "cannot stop decode/0: 1 of 2\nfor a reason")

    assert gpuctl("stop", "decode/0") == (code, "", "gpuctl: cannot stop decode/0: 1 of 2 for a reason\n")


@pytest.mark.parametrize(
    "verb", [["status"], ["gpus"], ["ping"], ["stop", "--all"], ["logs", "a/0"], ["events", "-n1"]]
)
def test_without_a_daemon_every_command_exits_5_with_one_line_even_for_json(
    gpuctl: Any, tmp_path: Path, verb: list[str]
) -> None:
    code, out, err = gpuctl(*verb, "-o", "json", "--socket", str(tmp_path / "none"))

    assert (code, out) == (5, "")
    assert err.startswith(f"gpuctl: cannot reach gpuward: there is no socket {tmp_path / 'none'};")
    assert err.count("\n") == 1


def test_a_socket_path_of_108_characters_is_refused(gpuctl: Any) -> None:
    code, _, err = gpuctl("ping", "--socket", "/" + "x" * 107)

    assert code == 5
    assert "108 bytes long" in err


def test_ping_tells_who_answers(gpuctl: Any, daemon: Any) -> None:
    daemon.answers("ping", PONG)

    code, out, _ = gpuctl("ping")
    document = json.loads(gpuctl("ping", "-o", "json")[1])

    assert code == 0
    assert out.startswith("gpuward 0.1.0, pid 42, answers in ")
    assert document.pop("took_s") < 5
    assert document == {"schema_version": 1, **PONG}


def test_version_tells_both_ends_and_lives_without_a_daemon(gpuctl: Any, daemon: Any, tmp_path: Path) -> None:
    from gpuward import __version__

    daemon.answers("ping", PONG)

    both = gpuctl("--version")
    alone = gpuctl("version", "-o", "json", "--socket", str(tmp_path / "none"))

    assert both[:2] == (0, f"gpuctl   {__version__} (protocol 1)\ngpuward  0.1.0 (protocol 1)\n")
    assert alone[0] == 0
    assert json.loads(alone[1])["daemon"] is None


def test_ctrl_c_exits_130_without_a_word(daemon: Any, documents: Any) -> None:
    daemon.answers("logs", documents.log("first line\n"))
    process = subprocess.Popen(
        [*GPUCTL, "logs", "-f", "a/0", "--socket", daemon.socket], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"first line\n"

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)

    assert (process.returncode, err) == (130, b"")


@pytest.mark.parametrize("size", [3, 300_000])
def test_a_reader_that_leaves_early_is_no_reason_to_complain(daemon: Any, documents: Any, size: int) -> None:
    daemon.answers("logs", documents.log("x" * size))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    os.close(reading)

    done = subprocess.run(
        [*GPUCTL, "logs", "a/0", "--socket", daemon.socket],
        env=environment,
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)

    assert (done.returncode, done.stderr) == (141, b"")


def test_what_the_stream_cannot_encode_does_not_stop_gpuctl(daemon: Any, documents: Any) -> None:
    daemon.answers("logs", documents.log("Übergröße 模型\n"))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}

    done = subprocess.run(
        [*GPUCTL, "logs", "a/0", "--socket", daemon.socket], env=environment, capture_output=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, b"?bergr??e ??\n")


def test_on_a_real_terminal_status_is_coloured_and_fits(daemon: Any, documents: Any) -> None:
    daemon.answers("status", documents.status(documents.worker(), documents.broken_worker()))
    parent, child = pty.openpty()
    os.set_blocking(parent, False)
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    environment.pop("NO_COLOR", None)

    done = subprocess.run(
        [*GPUCTL, "--socket", daemon.socket], env=environment, stdout=child, stderr=subprocess.PIPE, check=False
    )
    os.close(child)
    out = os.read(parent, 65536).decode()
    os.close(parent)

    assert (done.returncode, done.stderr) == (0, b"")
    assert "\x1b[32mready" in out
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in out.splitlines()) <= 80


def modules_after(daemon: Any, *argv: str) -> set[str]:
    """Return the names of all modules that gpuctl has imported when it ends."""
    script = (
        "import sys; from gpuward.ctl.main import main; code = main(sys.argv[1:]); "
        "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *argv, "--socket", daemon.socket], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("output", ["table", "json"])
def test_status_imports_nothing_that_is_slow(daemon: Any, documents: Any, output: str) -> None:
    daemon.answers("status", documents.status(documents.worker(), documents.broken_worker()))

    modules = modules_after(daemon, "status", "-o", output)

    slow = {"asyncio", "structlog", "pynvml", "psutil", "rich", "msgspec", "zmq", "yaml"}
    slow |= {"typing", "dataclasses", "inspect", "logging", "datetime", "uuid", "textwrap", "shutil", "subprocess"}
    assert "gpuward.ctl.look" in modules
    assert modules & slow == set()


def test_colours_are_what_rich_is_imported_for(daemon: Any, documents: Any) -> None:
    daemon.answers("status", documents.status(documents.worker()))

    assert "rich" in modules_after(daemon, "status", "--color", "always")
