"""The keeper's files: whatever a value holds, it is read as one value of its own key."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from gpuward.host import keeper

ANY_TEXT = st.text(st.characters(codec=None, categories=["L", "Cc", "Cs", "Zl", "Zp", "Zs", "Cf"]))


@given(st.lists(st.tuples(st.sampled_from(["cwd", "marker", "share", "lease"]), ANY_TEXT)))
def test_what_is_written_is_read_under_its_own_key_and_never_as_another(pairs: list[tuple[str, str]]) -> None:
    with TemporaryDirectory() as directory:
        keeper.write_pairs(directory, "spec", pairs)

        read = keeper.read_pairs(f"{directory}/spec")
        as_earlier_versions_did = (Path(directory) / "spec").read_text("utf-8", "surrogateescape").splitlines(True)

    assert read.pop("version") == ["1"]
    assert {key: len(values) for key, values in read.items()} == {
        key: sum(one == key for one, _ in pairs) for key, _ in pairs
    }
    assert not [line for line in as_earlier_versions_did if "\r" in line]


def test_a_carriage_return_in_a_working_directory_adds_no_key(tmp_path: Path) -> None:
    keeper.write_pairs(str(tmp_path), "spec", [("cwd", "/tmp\rmarker VICTIM=1\rshare yes\x0b\x85"), ("share", "no")])

    assert keeper.read_pairs(str(tmp_path / "spec")) == {
        "version": ["1"],
        "cwd": ["/tmp marker VICTIM=1 share yes\x0b\x85"],
        "share": ["no"],
    }


def test_bytes_that_are_no_text_are_kept(tmp_path: Path) -> None:
    keeper.write_pairs(str(tmp_path), "end", [("error", "caf\udce9")])

    assert keeper.read_pairs(str(tmp_path / "end"))["error"] == ["caf\udce9"]
