"""Operators' regular expressions: linear whatever they say, and refused with the way out where they cannot be."""

from __future__ import annotations

import time

import pytest

from gpuward.config.patterns import BadPattern, compiled

pytest.importorskip("re2", reason="this environment is older than requirements.lock: make venv")


def test_a_pattern_without_end_ends() -> None:
    pattern = compiled("(a+)+$")
    begun = time.thread_time()

    assert pattern.search("a" * 4000 + "b") is None
    assert time.thread_time() - begun < 1


def test_what_it_finds_is_where_it_stands_with_its_groups() -> None:
    found = compiled(r"é+ after (?P<mib>\d+)(?P<unit> MiB)?").search("éé after 512")

    assert found is not None
    assert (found.start(), found.end(), found.groupdict()) == (0, 12, {"mib": "512", "unit": None})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a(?=b)", "look-around and back-references are not supported"),
        (r"(a)\1", "look-around and back-references are not supported"),
        ("a{1,2000}", "repeat at most 1000 times"),
        ("(", r"missing \)"),
        ("(?:a{1000}){1000}", "size"),
    ],
)
def test_what_cannot_be_linear_is_refused(text: str, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadPattern, match=says):
        compiled(text)

    assert capfd.readouterr() == ("", "")
