"""Whether a worker that serves HTTP is ready: it answers, the answer is its own, and it serves its model.

``/health`` 200 alone proves nothing: vLLM binds its port before it loads the model and listens after, so whoever takes
the port meanwhile answers for it; two vLLM on one port both believe that they serve (vllm-project/vllm #8204, #39762).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from gpuward.host.address import Address, Readiness, address_of
from gpuward.host.http import BadAnswer, get
from gpuward.host.ports import Socket, holder, listening, owners, reached
from gpuward.host.text import clean

MODELS_PATH: Final = "/v1/models"
OK: Final = 200
KEY_WANTED: Final = frozenset({401, 403})
MODELS_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Whether the worker is ready; ``reason`` names the proof, or the part that is missing."""

    ready: bool
    reason: str


class _Model(msgspec.Struct, frozen=True):
    id: str


class _Models(msgspec.Struct, frozen=True):
    data: tuple[_Model, ...]


async def check(readiness: Readiness, tree_pids: Callable[[], Collection[int]], timeout_s: float) -> ProbeResult:
    """Ask a worker once, ``timeout_s`` for everything. Never raises for what the worker does.

    ``tree_pids``: the processes of the run, asked for only when the URL has answered 200. Readiness without a URL (by
    log, by time) is not this module's: ValueError.
    """
    target = address_of(readiness)
    try:
        async with asyncio.timeout(timeout_s):
            return await _check(readiness, target, tree_pids, timeout_s)
    except TimeoutError:
        return ProbeResult(False, f"port {target.port} gave no whole answer within {timeout_s:g} s")
    except ConnectionRefusedError:
        return ProbeResult(False, f"nothing listens on port {target.port} yet")
    except (OSError, BadAnswer) as error:
        return ProbeResult(False, f"port {target.port}: {error}")


async def _check(
    readiness: Readiness, target: Address, tree_pids: Callable[[], Collection[int]], timeout_s: float
) -> ProbeResult:
    health = await get(target, timeout_s)
    if health.status != OK:
        return ProbeResult(False, f"GET {readiness.url} answers {health.status}, not 200")
    stranger = _stranger(reached(listening(target.port), health.peer), tree_pids())
    if stranger:
        return ProbeResult(False, f"port {target.port} answers, but {stranger}")
    if readiness.model is None:
        return ProbeResult(True, f"GET {readiness.url} answers 200 from this run")
    return await _serves(readiness.model, replace(target, path=MODELS_PATH), timeout_s)


def _stranger(sockets: Collection[Socket], tree: Collection[int]) -> str:
    """Say who listens instead of the run; empty where all of ``sockets`` are the run's.

    One is not enough where the port is shared (SO_REUSEPORT): the kernel spreads the requests.
    """
    if not sockets:
        return "no process of this host listens there, perhaps one of another network namespace"
    ours = owners(sockets, tree)
    foreign = [socket for socket in sockets if socket.inode not in ours]
    if not foreign:
        return ""
    other = holder(foreign[0])
    pid = "?" if other.pid is None else other.pid
    return f"the listener is pid {pid} ({other.name}), not of this run"


async def _serves(model: str, target: Address, timeout_s: float) -> ProbeResult:
    answer = await get(target, timeout_s)
    where = f"port {target.port}"
    if answer.status in KEY_WANTED:
        # vLLM with an API key guards /v1 and not /health; the listener is proved, and the pool does not name the key
        return ProbeResult(True, f"{where} answers 200 from this run; its models are behind a key and not checked")
    if answer.status != OK:
        return ProbeResult(False, f"GET {MODELS_PATH} on {where} answers {answer.status}, not 200")
    try:
        names = [entry.id for entry in msgspec.json.decode(answer.body, type=_Models).data]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return ProbeResult(False, f"GET {MODELS_PATH} on {where} answers no list of models: {clean(str(error))}")
    if model.rstrip("/") in (name.rstrip("/") for name in names):
        return ProbeResult(True, f"{where} answers 200 from this run and serves {model}")
    shown = ", ".join(clean(name) for name in names[:MODELS_SHOWN]) or "none"
    return ProbeResult(False, f"{where} serves other models ({shown}), not {model}")
