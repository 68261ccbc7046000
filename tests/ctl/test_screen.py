"""Where gpuctl writes: trouble fits the terminal it is read on, and stays one line where a program reads it."""

from __future__ import annotations

import io

import pytest
from tests.ctl.conftest import Tty

from gpuward.ctl.screen import Screen

SENTENCE = "cannot place pool 'decode': 9 workers x 1 GPUs each = 9, but this host has 8; lower workers " * 3


def test_trouble_on_a_terminal_is_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    err = Tty()

    screen = Screen(out=io.StringIO(), err=err)
    screen.complain(SENTENCE)
    screen.quote(["torch.OutOfMemoryError: " + "CUDA out of memory " * 9])

    lines = err.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    told = [line for line in lines if not line.startswith("  | ")]
    assert " ".join(told) == f"gpuctl: {SENTENCE.strip()}"
    assert len(lines) - len(told) == 3


def test_trouble_in_a_file_is_one_line_whatever_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    err = io.StringIO()

    Screen(out=io.StringIO(), err=err).complain(SENTENCE)

    assert err.getvalue() == f"gpuctl: {SENTENCE.strip()}\n"
