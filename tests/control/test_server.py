"""The daemon's end of the socket: one answer for each request, an error for what is none, and the socket's file."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path

import pytest
import zmq
from tests.control.served import MAX_BYTES, Rude, Served
from tests.waiting import eventually

from gpuward.control.client import Client, Refused
from gpuward.control.protocol import events_path, request
from gpuward.control.roles import Role, Roles
from gpuward.control.server import PENDING_PER_PEER, Server, SocketInUse


def test_a_request_is_answered_and_its_sender_is_known(served: Served, polite: Client) -> None:
    answer = polite.call("ping")

    assert answer == {"op": "ping", "uid": os.geteuid(), "pid": os.getpid(), "role": Role.ADMIN}


def test_a_req_socket_gets_its_answers_too(served: Served) -> None:
    req = Rude(served.path, zmq.REQ)

    answers = [req.ask(request("ping", {}, str(number)))["id"] for number in range(3)]
    req.close()

    assert answers == ["0", "1", "2"]


def test_a_refusal_carries_its_code_and_details(polite: Client) -> None:
    with pytest.raises(Refused) as refused:
        polite.call("reload")

    assert (refused.value.code, refused.value.message, refused.value.details) == ("refused", "no file", {"why": "test"})


def test_a_defect_is_answered_and_then_ends_the_daemon(served: Served, polite: Client) -> None:
    with pytest.raises(Refused, match="cannot status: unexpected LookupError: a defect"):
        polite.call("status")

    assert isinstance(eventually(lambda: served.failure, within_s=5), LookupError)


@pytest.mark.parametrize(
    "frames",
    [
        (b"",),
        (b"", b""),
        (b"garbage",),
        (b"[]",),
        (b"1",),
        (b"null",),
        (b"{}",),
        (b"", b"{}", b"{}"),
        (b"[" * 90_000,),
        (b"x" * (MAX_BYTES + 1),),
        (b"x" * (MAX_BYTES * 4),),
        (b"y",) * 10_000,
    ],
    ids=["empty", "two empty", "garbage", "list", "number", "null", "object", "two", "deep", "long", "longest", "many"],
)
def test_what_is_no_request_is_answered_with_an_error_and_counted(
    served: Served, rude: Rude, polite: Client, frames: tuple[bytes, ...]
) -> None:
    answer = rude.ask(*frames)

    assert answer["ok"] is False
    assert answer["error"]["code"] in {"bad-request", "bad-protocol"}
    assert served.server.counters.bad_requests == 1
    assert polite.call("ping")["op"] == "ping"


def test_a_frame_far_too_long_is_not_read_and_its_sender_hung_up_on(served: Served, rude: Rude, polite: Client) -> None:
    assert rude.ask(request("ping", {}, "a"))["ok"] is True

    rude.socket.set(zmq.RECONNECT_IVL, -1)
    rude.socket.send(b"x" * (4 * MAX_BYTES + 1))

    eventually(lambda: served.connections == 0, within_s=5)
    assert served.server.counters.requests == 1
    assert polite.call("ping")["op"] == "ping"


def test_a_connection_may_have_only_so_many_requests_waiting(served: Served, rude: Rude, polite: Client) -> None:
    for number in range(PENDING_PER_PEER + 1):
        rude.socket.send(request("operation", {"id": "x", "wait_s": 30}, str(number)))

    answer = json.loads(rude.socket.recv())

    assert (answer["id"], answer["error"]["code"]) == (str(PENDING_PER_PEER), "busy")
    assert served.server.counters.busy == 1
    assert polite.call("ping")["op"] == "ping"


def test_the_socket_is_for_its_owner_and_group_only(served: Served) -> None:
    for path in (served.path, events_path(served.path)):
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o660


def test_a_second_server_on_the_same_path_is_refused_and_the_first_goes_on(served: Served, polite: Client) -> None:
    async def open_another() -> None:
        another = Server(served.path, Roles("no-such-group"), max_message_bytes=MAX_BYTES)
        try:
            another.open()
        finally:
            another.close()

    with pytest.raises(SocketInUse, match=f"the gpuward with pid {os.getpid()} does already"):
        asyncio.run(open_another())

    assert polite.call("ping")["op"] == "ping"


def test_a_closed_server_leaves_no_socket_behind(tmp_path: Path) -> None:
    served = Served(tmp_path / "c.sock")

    served.close()

    assert [path.name for path in tmp_path.iterdir()] == ["c.sock.lock"]


def test_a_replaced_socket_is_noticed_and_the_new_one_left_alone(tmp_path: Path) -> None:
    served = Served(tmp_path / "c.sock")
    Path(served.path).unlink()
    Path(served.path).write_text("somebody else's")

    noticed = not served.server.in_place
    served.close()

    assert noticed
    assert Path(served.path).read_text() == "somebody else's"
