from __future__ import annotations

import json
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuward.ctl.follow.POLL_S", 0.001)


class RunLogs:
    """The log of each run and whether it is over; ``then`` happens step by step, before each answer but the first."""

    def __init__(self, documents: Any) -> None:
        self.text: dict[int, str] = {}
        self.ended: set[int] = set()
        self.newest = 1
        self.asked = 0
        self.then: list[Any] = []
        self._documents = documents

    def answer(self, args: dict[str, Any]) -> dict[str, Any]:
        self.asked += 1
        if self.then and self.asked > 1:
            self.then.pop(0)(self)
        run = self.newest if args["run"] is None else args["run"]
        text = self.text.get(run, "")
        if args["lines"] is not None:
            kept = "".join(text.splitlines(keepends=True)[-args["lines"] :]) if args["lines"] else ""
            offset = len(text) - len(kept)
        else:
            offset, kept = args["offset"], text[args["offset"] :]
        document: dict[str, Any] = self._documents.log(kept, run=run, offset=offset, ended=run in self.ended)
        return document


@pytest.fixture
def runs(daemon: Any, documents: Any) -> RunLogs:
    scripted = RunLogs(documents)
    daemon.ops["logs"] = scripted.answer
    return scripted


def _interrupt(_runs: RunLogs) -> None:
    import _thread

    _thread.interrupt_main()


def test_logs_are_the_last_lines_as_they_are(gpuctl: Any, daemon: Any, runs: RunLogs) -> None:
    runs.text[1] = "one\ntwo \x1b[1mbold\x1b[0m\nthree\n"

    code, out, err = gpuctl("logs", "decode/0", "-n", "2")

    assert (code, out, err) == (0, "two \x1b[1mbold\x1b[0m\nthree\n", "")
    assert daemon.args_of("logs") == [
        {"worker": "decode/0", "run": None, "lines": 2, "offset": None, "max_bytes": 1 << 20}
    ]


def test_an_earlier_run_has_its_own_log(gpuctl: Any, runs: RunLogs) -> None:
    runs.text, runs.newest = {1: "old\n", 2: "new\n"}, 2

    assert gpuctl("logs", "decode/0", "--run", "1")[1] == "old\n"


def test_lines_that_do_not_fit_into_an_answer_are_said_to_be_missing(gpuctl: Any, daemon: Any, documents: Any) -> None:
    daemon.answers("logs", documents.log("only this\n", offset=5000))

    code, out, err = gpuctl("logs", "decode/0", "-n", "100000")

    assert (code, out) == (0, "only this\n")
    assert err == "gpuctl: only the last 10 characters are shown, 100000 lines are more than fit\n"


def test_logs_for_machines_are_the_daemons_document(gpuctl: Any, runs: RunLogs) -> None:
    runs.text[1] = "one\n"

    document = json.loads(gpuctl("logs", "decode/0", "-o", "json")[1])

    assert (document["schema_version"], document["text"], document["next_offset"]) == (1, "one\n", 4)


def test_following_writes_each_byte_once_and_ends_with_ctrl_c(gpuctl: Any, daemon: Any, runs: RunLogs) -> None:
    runs.text[1] = "one\ntwo\n"
    runs.then = [
        lambda it: it.text.update({1: "one\ntwo\nthr"}),
        lambda it: None,
        lambda it: it.text.update({1: "one\ntwo\nthree\n"}),
        lambda it: None,
        _interrupt,
    ]

    code, out, err = gpuctl("logs", "decode/0", "-f", "-n", "1")

    assert (code, out, err) == (130, "two\nthree\n", "")
    assert [args["offset"] for args in daemon.args_of("logs")][:4] == [None, 8, 11, 11]


def test_following_goes_on_with_the_next_run(gpuctl: Any, runs: RunLogs) -> None:
    def end(it: RunLogs) -> None:
        it.text[1] += "last words\n"
        it.ended.add(1)

    def restart(it: RunLogs) -> None:
        it.newest, it.text[2] = 2, "hello again\n"

    runs.text[1] = "one\n"
    runs.then = [end, lambda it: None, lambda it: None, restart, lambda it: None, lambda it: None, _interrupt]

    code, out, err = gpuctl("logs", "decode/0", "-f")

    assert (code, out) == (130, "one\nlast words\nhello again\n")
    assert err.splitlines() == [
        "gpuctl: run 1 of decode/0 has ended; waiting for the next",
        "gpuctl: run 2 of decode/0",
    ]


def test_following_a_run_by_number_ends_with_it_and_misses_nothing(gpuctl: Any, runs: RunLogs) -> None:
    def end(it: RunLogs) -> None:
        it.text[1] += "last words\n"
        it.ended.add(1)

    runs.text[1] = "one\n"
    runs.then = [end]

    code, out, err = gpuctl("logs", "decode/0", "-f", "--run", "1")

    assert (code, out, err) == (0, "one\nlast words\n", "")


def test_words_written_while_the_daemon_looked_whether_the_run_is_over_are_not_missed(
    gpuctl: Any, runs: RunLogs
) -> None:
    runs.text[1] = "one\n"
    runs.then = [lambda it: it.ended.add(1), lambda it: it.text.update({1: "one\nlast words\n"})]

    assert gpuctl("logs", "decode/0", "-f", "--run", "1")[:2] == (0, "one\nlast words\n")


@pytest.mark.parametrize("lines", ["-1", "x", "1.5", "1000001", "³"])
def test_a_number_of_lines_is_a_whole_number(gpuctl: Any, daemon: Any, lines: str) -> None:
    code, _, err = gpuctl("logs", "decode/0", f"--lines={lines}")

    assert (code, daemon.asked) == (2, [])
    assert "is no whole number" in err
