"""Ready is proved: against real servers on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping

import pytest

from gpuward.host.address import Readiness
from gpuward.host.probe import ProbeResult, check

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
SHARE_PORT = """
import socket, sys
held = socket.socket(); held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
held.bind(("127.0.0.1", int(sys.argv[1]))); held.listen()
print("up", flush=True); sys.stdin.read()
"""

OURSELVES = (os.getpid(),)
Answers = Mapping[str, bytes]


def models(*names: str, chunked: bool = False) -> bytes:
    body = b'{"object":"list","data":[%s]}' % b",".join(b'{"id":"%s","root":"/m"}' % name.encode() for name in names)
    if chunked:
        half = len(body) // 2
        parts = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:]))
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


def probed(
    answers: Answers, model: str | None = None, tree: Collection[int] = OURSELVES, timeout_s: float = 5.0
) -> ProbeResult:
    """Probe a server of this process that gives ``answers`` by path; an empty one means silence."""

    async def scenario() -> ProbeResult:
        async with a_server(answers) as port:
            return await check(asking(port, model), lambda: tree, timeout_s)

    return asyncio.run(scenario())


def asking(port: int, model: str | None = None) -> Readiness:
    return Readiness(url=f"http://127.0.0.1:{port}/health", port=port, model=model)


@contextlib.asynccontextmanager
async def a_server(answers: Answers, *, shared: bool = False):
    connections: list[asyncio.Task[None]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
            writer.write(answers.get(path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))
            if not answers.get(path):
                await reader.read()
            writer.close()
            await writer.wait_closed()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.create_task(answer(reader, writer)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, reuse_port=shared)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*connections)


def test_health_listener_and_model_together_are_ready() -> None:
    result = probed({"/health": OK, "/v1/models": models("llama", "alias")}, model="alias")

    assert result.ready
    assert "answers 200 from this run and serves alias" in result.reason


def test_a_model_directory_is_the_same_with_and_without_its_last_slash() -> None:
    assert probed({"/health": OK, "/v1/models": models("/models/m/")}, model="/models/m").ready


def test_a_body_in_chunks_is_read() -> None:
    assert probed({"/health": OK, "/v1/models": models("llama", chunked=True)}, model="llama").ready


def test_a_body_up_to_the_end_of_the_connection_is_read() -> None:
    body = models("llama").partition(b"\r\n\r\n")[2]

    assert probed({"/health": OK, "/v1/models": b"HTTP/1.0 200 OK\r\n\r\n" + body}, model="llama").ready


def test_a_command_needs_no_model() -> None:
    assert probed({"/health": OK}).ready


def test_another_model_is_not_ready_and_named() -> None:
    result = probed({"/health": OK, "/v1/models": models("qwen")}, model="llama")

    assert not result.ready
    assert "serves other models (qwen), not llama" in result.reason


def test_models_behind_a_key_are_said_to_be_unchecked() -> None:
    refused = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"

    result = probed({"/health": OK, "/v1/models": refused}, model="llama")

    assert result.ready
    assert "behind a key and not checked" in result.reason


@pytest.mark.parametrize("body", [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhuh?", b"HTTP/1.1 500 No\r\n\r\n"])
def test_no_list_of_models_is_not_ready(body: bytes) -> None:
    result = probed({"/health": OK, "/v1/models": body}, model="llama")

    assert not result.ready
    assert "/v1/models" in result.reason


def test_an_answer_other_than_200_is_not_ready() -> None:
    result = probed({"/health": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"})

    assert not result.ready
    assert "answers 503, not 200" in result.reason


def test_a_foreign_listener_that_answers_200_is_not_ready_and_named() -> None:
    result = probed({"/health": OK, "/v1/models": models("llama")}, model="llama", tree=())

    assert not result.ready
    assert f"answers, but the listener is pid {os.getpid()} (" in result.reason
    assert result.reason.endswith("not of this run")


def test_a_port_shared_with_a_stranger_is_not_ready() -> None:
    async def scenario() -> tuple[ProbeResult, int]:
        async with a_server({"/health": OK}, shared=True) as port:
            stranger = await asyncio.create_subprocess_exec(
                sys.executable, "-S", "-c", SHARE_PORT, str(port), stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert stranger.stdout is not None
            await stranger.stdout.readline()
            result = await until_answered(lambda: check(asking(port), lambda: OURSELVES, 0.2))
            await stranger.communicate(b"end")
            return result, stranger.pid

    result, pid = asyncio.run(scenario())

    assert not result.ready
    assert f"the listener is pid {pid} (python" in result.reason


async def until_answered(probe: Callable[[], Awaitable[ProbeResult]]) -> ProbeResult:
    """Ask until the kernel hands the connection to the one of the two listeners that answers."""
    for _ in range(20):
        result = await probe()
        if "no whole answer" not in result.reason:
            return result
    raise AssertionError("20 connections in a row went to the silent listener")


def test_nothing_listens_yet() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]

        result = asyncio.run(check(asking(port), lambda: OURSELVES, 5.0))

    assert result == ProbeResult(False, f"nothing listens on port {port} yet")


@pytest.mark.parametrize("answers", [{"/health": b""}, {"/health": OK, "/v1/models": b""}])
def test_silence_ends_at_the_deadline(answers: Answers) -> None:
    result = probed(answers, model="llama", timeout_s=0.2)

    assert not result.ready
    assert "gave no whole answer within 0.2 s" in result.reason


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: nine\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_100_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 5000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1_000_000 + b"0\r\n\r\n",
    ],
)
def test_garbage_is_not_ready_and_raises_nothing(garbage: bytes) -> None:
    result = probed({"/health": garbage})

    assert not result.ready
    assert result.reason


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"data":' + b"[" * 100_000,
        b'{"data":[{"id":"caf\xe9"}]}',
        b'{"data":[{"id":"\\ud800"}]}',
        b'{"data":[{"id":1' + b"0" * 5000 + b"}]}",
        b'{"data":null}',
    ],
)
def test_models_that_are_no_list_of_names_are_not_ready_and_raise_nothing(body: bytes) -> None:
    framed = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    result = probed({"/health": OK, "/v1/models": framed}, model="llama")

    assert not result.ready
    assert len(result.reason) < 400


def test_a_model_that_is_called_with_controls_is_shown_escaped() -> None:
    result = probed({"/health": OK, "/v1/models": models("a\\u001b[2Jb")}, model="llama")

    assert r"serves other models (a\x1b[2Jb)" in result.reason


def test_a_readiness_without_url_is_not_for_this_probe() -> None:
    with pytest.raises(ValueError, match="no URL"):
        asyncio.run(check(Readiness(after_s=1.0), lambda: OURSELVES, 1.0))
