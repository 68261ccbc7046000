"""What the counters of a worker tell, also where they are no counters; and what it makes of a question."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

import pytest

from gpuward.host.address import Address
from gpuward.policy.worker.liveness import Count
from gpuward.supervisor.canary import Canary, Heard
from gpuward.supervisor.liveness import counters_of


def test_counters_are_told_by_engine() -> None:
    body = b"""# HELP vllm:generation_tokens_total x
vllm:generation_tokens_total{engine="0"} 12.0
vllm:iteration_tokens_total_count{engine="0"} 3.0
vllm:generation_tokens_total{engine="1"} 1.5e+03
vllm:num_requests_running{engine="0"} 2.0
vllm:num_requests_waiting{engine="0"} 1.0
"""

    look = counters_of(body)

    assert (look.answered, look.engines) == (True, {"0": Count(15.0, 3), "1": Count(1500.0, 0)})


@pytest.mark.parametrize(
    ("awake", "offloaded", "asleep"), [(b"1.0", b"0.0", False), (b"0.0", b"1.0", True), (b"0.0", b"0.0", False)]
)
def test_an_engine_that_sleeps_says_so(awake: bytes, offloaded: bytes, asleep: bool) -> None:
    body = b"""vllm:generation_tokens_total{engine="0"} 12.0
vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="awake"} %s
vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="weights_offloaded"} %s
vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="discard_all"} 0.0
"""

    assert counters_of(body % (awake, offloaded)).asleep is asleep


def test_a_server_without_counters_has_answered() -> None:
    look = counters_of(b"python_info 1.0\n")

    assert (look.answered, look.engines) == (True, {})


@pytest.mark.parametrize("value", [b"1.2.3", b"1e999", b"e", b"9" * 5000, b"1e300", b"+"])
@pytest.mark.parametrize("name", [b"vllm:generation_tokens_total", b"vllm:num_requests_running"])
def test_what_counts_nothing_is_no_counter(name: bytes, value: bytes) -> None:
    look = counters_of(name + b"{} " + value + b"\n")

    assert (look.answered, look.engines) == (True, {})


@contextlib.asynccontextmanager
async def a_server(statuses: Mapping[str, int], asked: list[str]) -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(head)
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % statuses.get(head.split()[1], 404))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def asked_of(statuses: Mapping[str, int], times: int = 1, key: str = "", engines: int = 1) -> tuple[Heard, list[str]]:
    """What the last of some questions brought, and the requests that they took."""

    async def scenario() -> tuple[Heard, list[str]]:
        asked: list[str] = []
        async with a_server(statuses, asked) as port:
            canary = Canary(Address("127.0.0.1", port, "/health", key=key), "m")
            for _ in range(times):
                heard = await canary.ask(2.0, engines)
            return heard, asked

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("status", "heard"),
    [
        (200, "came"),
        (500, "failed"),
        (503, "failed"),
        (401, "refused"),
        (400, "refused"),
        (429, "refused"),
        (302, "refused"),
    ],
)
def test_only_a_200_is_life(status: int, heard: str) -> None:
    assert asked_of({"/v1/completions": status})[0].canary == heard


def test_it_is_asked_with_the_key_of_its_pool() -> None:
    _, asked = asked_of({"/v1/completions": 200}, key="secret")

    assert "Authorization: Bearer secret\r\n" in asked[0]


def test_a_model_that_completes_nothing_is_asked_what_it_can_do_and_then_only_that() -> None:
    heard, asked = asked_of({"/pooling": 200}, times=2)

    assert heard.canary == "came"
    assert [head.split()[1] for head in asked] == ["/v1/completions", "/v1/embeddings", "/pooling", "/pooling"]


def test_one_that_understands_no_question_cannot_be_asked() -> None:
    heard, _ = asked_of({})

    assert heard == Heard("refused", "it has none of /v1/completions, /v1/embeddings, /pooling, /classify")


def test_engines_side_by_side_are_asked_in_turn() -> None:
    _, asked = asked_of({"/v1/completions": 200}, times=3, engines=2)

    assert [head.partition("X-data-parallel-rank: ")[2][0] for head in asked] == ["0", "1", "0"]
