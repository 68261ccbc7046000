from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from gpuward.control.client import Client, NotAllowed, Refused, Unreachable


class Router:
    """A ROUTER that gives each request the next of ``answers``: bytes as they are, objects with the id put in."""

    def __init__(self, path: Path, *answers: bytes | dict[str, Any]) -> None:
        self.requests: list[dict[str, Any]] = []
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        self._router.bind(f"ipc://{path}")
        self._answers = list(answers)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._over.is_set():
            if not self._router.poll(5):
                continue
            peer, *_, frame = self._router.recv_multipart()
            request = json.loads(frame)
            self.requests.append(request)
            if not self._answers:
                continue
            answer = self._answers.pop(0)
            wire = answer if isinstance(answer, bytes) else json.dumps({"id": request["id"], **answer}).encode()
            self._router.send_multipart([peer, b"", wire])

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._router.close()
        self._context.term()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def routers() -> Iterator[list[Router]]:
    made: list[Router] = []
    yield made
    for router in made:
        router.close()


def test_a_call_returns_the_result_of_the_answer(path: Path, routers: list[Router]) -> None:
    router = Router(path, {"ok": True, "result": {"pong": True}})
    routers.append(router)

    with Client(str(path)) as client:
        result = client.call("ping", {"a": 1})

    assert result == {"pong": True}
    assert router.requests == [{"v": 1, "id": router.requests[0]["id"], "op": "ping", "args": {"a": 1}}]


def test_calls_share_a_connection_and_never_an_id(path: Path, routers: list[Router]) -> None:
    router = Router(path, {"ok": True, "result": {"n": 1}}, {"ok": True, "result": {"n": 2}})
    routers.append(router)

    with Client(str(path)) as client:
        results = [client.call("ping"), client.call("ping")]

    assert results == [{"n": 1}, {"n": 2}]
    assert router.requests[0]["id"] != router.requests[1]["id"]


def test_an_error_answer_raises_refused_with_code_message_and_details(path: Path, routers: list[Router]) -> None:
    error = {"code": "busy", "message": "cannot start: 1 of 2", "details": {"left": 3}}
    routers.append(Router(path, {"ok": False, "error": error}))

    with Client(str(path)) as client, pytest.raises(Refused) as refused:
        client.call("start")

    assert (refused.value.code, refused.value.message, refused.value.details) == (
        "busy",
        "cannot start: 1 of 2",
        {"left": 3},
    )


def test_an_answer_without_id_is_the_answer_to_what_could_not_be_read(path: Path, routers: list[Router]) -> None:
    routers.append(Router(path, {"id": None, "ok": False, "error": {"code": "bad-request", "message": "what?"}}))

    with Client(str(path)) as client, pytest.raises(Refused, match=r"what\?"):
        client.call("ping")


def test_silence_is_unreachable_after_the_timeout_and_the_next_call_starts_afresh(
    path: Path, routers: list[Router]
) -> None:
    router = Router(path)
    routers.append(router)
    client = Client(str(path), timeout_s=0.05)

    with pytest.raises(Unreachable, match=r"nothing answers on .* within 0\.05 s"):
        client.call("ping")
    router._answers.append({"ok": True, "result": {"pong": True}})

    assert client.call("ping", timeout_s=5) == {"pong": True}
    client.close()


def test_a_client_outlives_the_daemon_it_was_connected_to(path: Path, routers: list[Router]) -> None:
    client = Client(str(path), timeout_s=5)
    first = Router(path, {"ok": True, "result": {"n": 1}})
    client.call("ping")
    first.close()

    with pytest.raises(Unreachable, match="nobody listens"):
        client.call("ping")
    routers.append(Router(path, {"ok": True, "result": {"n": 2}}))

    assert client.call("ping") == {"n": 2}
    client.close()


@pytest.mark.parametrize("answer", [b"garbage", b"[1]", b"", b"[" * 100_000], ids=["text", "list", "empty", "deep"])
def test_an_answer_that_is_no_object_is_not_gpuward(path: Path, routers: list[Router], answer: bytes) -> None:
    routers.append(Router(path, answer))

    with Client(str(path), timeout_s=5) as client, pytest.raises(Unreachable, match="is not gpuward"):
        client.call("ping")


def test_a_missing_socket_is_said_to_be_missing(path: Path) -> None:
    with pytest.raises(Unreachable, match=rf"there is no socket {path}; is the daemon running"):
        Client(str(path)).call("ping")


def test_a_file_that_is_no_socket_is_said_to_be_none(path: Path) -> None:
    path.write_text("")

    with pytest.raises(Unreachable, match="is not a socket"):
        Client(str(path)).call("ping")


def test_a_socket_left_behind_is_said_to_have_no_listener(path: Path) -> None:
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(str(path))
    left.close()

    with pytest.raises(Unreachable, match="nobody listens on"):
        Client(str(path)).call("ping")


def test_a_socket_that_may_not_be_opened_points_to_the_group(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("gpuward.control.zmtp.Connection.__init__", denied)

    path.touch(mode=0o640)

    with pytest.raises(
        NotAllowed, match=r"not permitted: .* belongs to .* \(mode 0640\), you are .*; to operate, join"
    ):
        Client(str(path)).call("ping")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every socket")
def test_the_kernel_denies_a_socket_without_write_permission(path: Path, routers: list[Router]) -> None:
    routers.append(Router(path))
    path.chmod(0)

    with pytest.raises(NotAllowed, match="not permitted"):
        Client(str(path)).call("ping")


def test_a_path_of_108_bytes_is_refused_and_one_of_107_is_tried(tmp_path: Path) -> None:
    path = str(tmp_path) + "/"
    path += "x" * (108 - len(path))

    with pytest.raises(Unreachable, match="108 bytes long, a Unix socket takes at most 107"):
        Client(path).call("ping")
    with pytest.raises(Unreachable, match="there is no socket"):
        Client(path[:-1]).call("ping")


@pytest.mark.parametrize("path", ["", "/tmp/a\0b"])
def test_what_cannot_be_a_path_is_refused(path: str) -> None:
    with pytest.raises(Unreachable, match="is no socket path"):
        Client(path).call("ping")


def hang_up_on_one(listener: socket.socket) -> None:
    listener.accept()[0].close()


def test_a_call_waits_for_its_turn_while_the_queue_of_the_socket_is_full(path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(0)
    waiting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    waiting.connect(str(path))
    drained = threading.Timer(0.3, hang_up_on_one, [listener])
    drained.start()
    before_s = time.monotonic()

    with pytest.raises(Unreachable, match=r"nothing answers on .* within 1 s"):
        Client(str(path), timeout_s=1).call("ping")
    waited_s = time.monotonic() - before_s
    drained.join()
    connected = listener.accept()[0]
    greeting = connected.recv(10)
    for one in (listener, waiting, connected):
        one.close()

    assert waited_s >= 1
    assert greeting.startswith(b"\xff")
