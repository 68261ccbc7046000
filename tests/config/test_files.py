"""One way to read a file that a person wrote."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpuward.config.files import FILE_MAX_BYTES, read_file, text_of


def test_byte_order_mark_and_line_ends_make_no_difference(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfx = 1\r\ny = 2\r")

    assert read_file(str(tmp_path / "a")) == "x = 1\ny = 2\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"x" * (FILE_MAX_BYTES + 1), "it is larger than 524288 bytes"),
        (b"a\0b", "it is binary (a zero byte at 1)"),
        (b"caf\xe9", "it is not UTF-8 (byte 0xe9 at 3)"),
    ],
)
def test_what_is_no_text_says_what_it_is(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match="it is") as caught:
        text_of(content)

    assert said in str(caught.value)


@pytest.mark.parametrize("path", ["/dev/zero", "pipe"])
def test_what_has_no_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")

    with pytest.raises(ValueError, match="no regular file"):
        read_file(path)
