"""A real server on a real socket, in a thread of its own, and a client that may send anything."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import zmq

from gpuward.control.intake import connections_to
from gpuward.control.requests import Request
from gpuward.control.roles import Peer, Roles
from gpuward.control.server import Refusal, Server

MAX_BYTES = 100_000


class Served:
    """A server in a thread with a loop of its own; it answers every request with who asked for what."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.failure: Exception | None = None
        self.ticks = 0
        self.answered_at: list[int] = []
        """For each request the turn of the loop in which it was answered."""
        self.server: Server
        self._loop = asyncio.new_event_loop()
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._live(),))
        self._thread.start()
        assert self._listens.wait(10)

    async def _live(self) -> None:
        self._loop.set_exception_handler(lambda _, context: setattr(self, "failure", context.get("exception")))
        self.server = Server(self.path, Roles("no-such-group"), max_message_bytes=MAX_BYTES)
        self.server.open()
        self._listens.set()
        self._over = asyncio.Event()
        serving = asyncio.create_task(self.server.serve(self.answer))
        ticking = asyncio.create_task(self._tick())
        await self._over.wait()
        for task in (serving, ticking):
            task.cancel()
        self.server.close()

    async def _tick(self) -> None:
        """What else the daemon has to do."""
        while True:
            self.ticks += 1
            await asyncio.sleep(0)

    async def answer(self, asked: Request, peer: Peer) -> dict[str, Any]:
        self.answered_at.append(self.ticks)
        if asked.op == "reload":
            raise Refusal("refused", "no file", {"why": "test"})
        if asked.op == "operation":
            await asyncio.sleep(60)
        if asked.op == "status":
            raise LookupError("a defect")
        return {"op": asked.op, "uid": peer.uid, "pid": peer.pid, "role": peer.role}

    @property
    def connections(self) -> int:
        """Connections that are accepted and not closed yet."""
        return sum(1 for _ in connections_to(frozenset({self.path})))

    def hold(self) -> threading.Event:
        """Keep the loop from turning until the event is set."""
        until = threading.Event()
        self._loop.call_soon_threadsafe(until.wait)
        return until

    def publish(self, event: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(self.server.publish, event)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        self._loop.close()


class Rude:
    """Sends any frames and takes any answers."""

    def __init__(self, path: str, kind: int = zmq.DEALER) -> None:
        self.context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self.context.socket(kind)
        self.socket.linger = 0
        self.socket.rcvtimeo = self.socket.sndtimeo = 5000
        self.socket.connect(f"ipc://{path}")

    def ask(self, *frames: bytes) -> dict[str, Any]:
        self.socket.send_multipart(frames)
        answer: dict[str, Any] = json.loads(self.socket.recv_multipart()[-1])
        return answer

    def close(self) -> None:
        self.context.destroy(0)
