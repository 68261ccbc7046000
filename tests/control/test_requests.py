"""What is a request and what is not, frame by frame."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuward.control.requests import ARGS, BadRequest, Nothing, ScaleArgs, decode_request


def a_request(**known: object) -> bytes:
    return json.dumps({"v": 1, "id": "a", "op": "ping", **known}).encode()


def test_a_request_is_decoded_into_the_record_of_its_operation() -> None:
    request = decode_request(a_request(op="scale", args={"pool": "decode", "workers": 3}))

    assert (request.id, request.op, request.args) == ("a", "scale", ScaleArgs(pool="decode", workers=3))


def test_a_request_without_arguments_may_leave_them_out() -> None:
    assert decode_request(a_request()).args == Nothing()


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"[]",
        b"1",
        b"null",
        b'"ping"',
        b"{",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"v":1}x',
        b'{"v":NaN}',
        b'{"id":"\\ud800"}',
    ],
)
def test_what_is_no_json_object_is_refused_with_the_way_out(frame: bytes) -> None:
    with pytest.raises(BadRequest, match="send one JSON object in one frame") as refused:
        decode_request(frame)

    assert (refused.value.code, refused.value.request_id) == ("bad-request", None)


@pytest.mark.parametrize("version", [None, 0, 2, "1", True, 1.0, [1], {}])
def test_another_protocol_version_is_named_and_so_is_ours(version: object) -> None:
    with pytest.raises(BadRequest, match="this daemon speaks 1") as refused:
        decode_request(a_request(v=version))

    assert (refused.value.code, refused.value.request_id) == ("bad-protocol", "a")


@pytest.mark.parametrize("request_id", [None, 1, [], {}, "x" * 201])
def test_an_id_that_cannot_be_given_back_is_refused(request_id: object) -> None:
    with pytest.raises(BadRequest, match="at most 200 characters") as refused:
        decode_request(a_request(id=request_id))

    assert refused.value.request_id is None


@pytest.mark.parametrize("op", ["", "halt", "PING", None, 7, [], {"op": "ping"}])
def test_an_unknown_operation_is_answered_with_those_that_there_are(op: object) -> None:
    with pytest.raises(BadRequest, match="there are ping, status, plan") as refused:
        decode_request(a_request(op=op))

    assert refused.value.request_id == "a"


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("ping", {"loud": True}),
        ("ping", []),
        ("stop", {"targets": "decode"}),
        ("stop", {"targets": [""]}),
        ("stop", {"targets": ["x"] * 4097}),
        ("stop", {"all": 1}),
        ("scale", {"pool": "decode"}),
        ("scale", {"pool": "decode", "workers": "3"}),
        ("scale", {"pool": "decode", "workers": True}),
        ("scale", {"pool": "decode", "workers": -1}),
        ("logs", {"worker": "w/0", "run": 2**70}),
        ("logs", {"worker": "w/0", "offset": -2}),
        ("operation", {"id": "x", "wait_s": 31}),
        ("plan", {"text": "", "name": "f", "directory": "relative"}),
        ("plan", {"text": "", "name": "f", "directory": "/nul\0inside"}),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name_of_the_operation(op: str, args: object) -> None:
    with pytest.raises(BadRequest, match=f"cannot run {op}: ") as refused:
        decode_request(a_request(op=op, args=args))

    assert refused.value.request_id == "a"


@pytest.mark.parametrize("key", ["v", "op"])
def test_what_was_sent_is_quoted_short_however_long_or_deep_it_is(key: str) -> None:
    deep = a_request(**{key: "@"}).replace(b'"@"', b"[" * 500 + b"]" * 500)

    for frame in (a_request(**{key: "x" * 100_000}), deep):
        with pytest.raises(BadRequest) as refused:
            decode_request(frame)

        assert len(str(refused.value)) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(op=st.sampled_from(sorted(ARGS)) | st.text(max_size=8), args=JSON, version=st.sampled_from([1, 1, 1, 2]))
def test_any_json_is_a_request_or_a_bad_request(op: str, args: object, version: int) -> None:
    with suppress(BadRequest):
        request = decode_request(a_request(v=version, op=op, args=args))

        assert isinstance(request.args, ARGS[request.op])


@given(frame=st.binary(max_size=64))
def test_any_bytes_are_a_request_or_a_bad_request(frame: bytes) -> None:
    with pytest.raises(BadRequest):
        decode_request(frame)
