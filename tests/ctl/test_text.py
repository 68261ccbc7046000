from __future__ import annotations

import pytest

from gpuward.ctl import text
from gpuward.ctl.text import for_terminal, one_line

GIB = 2**30


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (90061, "1d01h"),
        (-3, "0s"),
    ],
)
def test_a_duration_shows_its_two_largest_units(seconds: float | None, shown: str) -> None:
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("used", "claimed", "shown"),
    [
        (0, 0, "........"),
        (4 * GIB, 0, "####...."),
        (2 * GIB, 6 * GIB, "##====.."),
        (6 * GIB, 2 * GIB, "######.."),
        (99 * GIB, 99 * GIB, "########"),
        (None, 4 * GIB, "====...."),
    ],
)
def test_a_bar_shows_used_then_what_is_claimed_beyond_it(used: int | None, claimed: int, shown: str) -> None:
    assert text.bar(used, claimed, 8 * GIB, 8, "#=.") == shown


def test_a_bar_of_an_unknown_total_is_unknown() -> None:
    assert text.bar(None, 0, None, 3, "#=.") == "???"


def test_unknown_bytes_are_not_zero() -> None:
    assert text.gib_of(None, 8 * GIB) == "?/8.0 GiB"


def test_terminal_controls_in_quoted_output_do_nothing() -> None:
    assert text.one_line("a\x1b[31mb\r\nc\x9bd\t") == "a [31mb  c d"


def test_wrapped_lines_keep_every_word_and_the_width() -> None:
    sentence = "cannot place pool 'decode': 3 workers x 3 GPUs each = 9, but this host has 8 " + "x" * 50

    lines = text.wrapped(sentence, 30)

    assert max(map(len, lines)) <= 30
    assert "".join("".join(lines).split()) == "".join(sentence.split())


def test_without_a_width_a_sentence_stays_one_line() -> None:
    assert text.wrapped("a b  c", None, indent="> ") == ["> a b  c"]


def test_shortened_text_says_that_something_is_missing() -> None:
    assert [text.shortened("abcdef", width) for width in (6, 5, 1, 0)] == ["abcdef", "abcd…", "…", ""]


def test_what_would_command_a_terminal_or_turn_its_text_around_is_not_shown_as_such() -> None:
    assert one_line("a\u202eb\u2066c\x1b[2J") == "a b c [2J"
    assert for_terminal("a\x1b]0;title\x07b\x9bc\u202ed\te\r\nf\n") == r"a\x1b]0;title\x07b\x9bc\u202ed" + "\te\nf\n"
