"""YAML from elsewhere: read strictly, and refused before it can do harm."""

from __future__ import annotations

import pytest

from gpuward.config.errors import ConfigError
from gpuward.interop.yaml_text import parse_yaml


def refused(text: str) -> tuple[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, file="disagg.yaml")
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith("disagg.yaml: ")
    return caught.value.problems[0].code, str(caught.value)


def laughs(levels: int, merge: str = "") -> str:
    """Each level holds the one before nine times."""
    lines = ["a0: &a0 {k: v}" if merge else "a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    close = "}" if merge else ""
    lines += [f"a{level}: &a{level} {merge}[{', '.join([f'*a{level - 1}'] * 9)}]{close}" for level in range(1, levels)]
    return "\n".join(lines)


def test_a_file_of_services_is_a_table_of_tables() -> None:
    assert parse_yaml("A:\n  k: '1'\n  f: true\nB:\n", file="f") == {"A": {"k": "1", "f": True}, "B": None}


def test_few_aliases_and_merges_are_fine() -> None:
    document = parse_yaml("A: &a {k: 1, l: 2}\nB:\n  <<: *a\n  k: 3\n", file="f")

    assert document["B"] == {"k": 3, "l": 2}


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("", "bad-value", "empty"),
        ("# nothing", "bad-value", "empty"),
        ("- a\n- b", "bad-value", "a list at the top"),
        ("hello", "bad-value", "a single value at the top"),
        ("A: 1\nA: 2", "duplicate-name", "'A' stands in line 1 and in line 2"),
        ("A:\n  k: 1\n  k: 2", "duplicate-name", "'k' stands in line 2 and in line 3"),
        ("1: x", "bad-syntax", "a key that is no text"),
        ("on: x", "bad-syntax", "a key that is no text"),
        ("? [a]\n: b", "bad-syntax", "a key that is no text"),
        ("A: [1", "bad-syntax", "not YAML"),
        ("A:\n\t- 1", "bad-syntax", "not YAML"),
        ("A: \0", "bad-syntax", "not YAML"),
        ("A: *b", "bad-syntax", "undefined alias"),
        ("A: 1\n---\nB: 2", "bad-syntax", "single document"),
        ("A: !!python/object/apply:os.system [id]", "bad-syntax", "could not determine a constructor"),
        ("A: 2001-99-99", "bad-value", "a value cannot be read"),
        ("A: " + "9" * 5000, "bad-value", "a value cannot be read"),
        ("A: &a [*a]", "bad-value", "an anchor that contains itself"),
        ("[" * 5000, "bad-value", "nested more than 32 deep"),
        ("A: " + "x" * 300_000, "bad-value", "300003 characters"),
        ("A:\n" + "- x\n" * 30_000, "bad-value", "more than 20000 values"),
    ],
)
def test_what_is_no_table_of_services_is_refused(text: str, code: str, says: str) -> None:
    found, message = refused(text)

    assert found == code
    assert says in message


def test_a_billion_laughs_are_counted_not_written_out() -> None:
    assert "aliases written out" in refused(laughs(10))[1]


def test_laughs_by_merge_keys_are_counted_too() -> None:
    assert "aliases written out" in refused(laughs(10, merge="{<<: "))[1]


def test_a_syntax_error_tells_line_and_column_in_one_sentence() -> None:
    _, message = refused("A:\n  b: 1\n\t- 2")

    assert message == (
        "disagg.yaml: not YAML: while scanning for the next token, found character '\\t' that cannot start any token "
        "(at line 3, column 1)"
    )
