"""Text of unknown origin: printable for people, and always something that a file can hold."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gpuward.host.text import clean, encoded

ANY = st.text(alphabet=st.characters(exclude_categories=()))


class Named(msgspec.Struct):
    name: str


@given(ANY)
def test_whatever_comes_is_printable_short_and_can_be_encoded(text: str) -> None:
    shown = clean(text, 40)

    assert shown.isprintable()
    assert len(shown) <= 40
    shown.encode()


@given(ANY)
def test_whatever_stands_in_a_record_can_be_written_and_read(text: str) -> None:
    written = encoded(Named(text))

    assert isinstance(msgspec.json.decode(written, type=Named).name, str)
    assert isinstance(json.loads(written)["name"], str)


def test_ordinary_text_stays_as_it_is() -> None:
    assert clean("python3 приложение 模型 é") == "python3 приложение 模型 é"
    assert encoded(Named("é")) == '{"name":"é"}'.encode()
