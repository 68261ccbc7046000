"""The daemon's end of the control socket: ROUTER for requests, PUB for events. It answers; it decides nothing.

Every request gets one answer. A frame that is no request is answered with an error, or dropped and counted where
there is nobody to answer. A slow or dead client delays nobody: answers to it are dropped and counted.
"""

from __future__ import annotations

import asyncio
import fcntl
import grp
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from gpuward.control.crowd import Crowd
from gpuward.control.intake import Intake
from gpuward.control.protocol import PROTOCOL_VERSION, SOCKET_PATH_MAX_BYTES, events_path
from gpuward.control.requests import BadRequest, Request, decode_request
from gpuward.control.roles import Peer, Roles

MAX_FRAMES = 4
QUEUED_MESSAGES = 256
PENDING_PER_PEER = 64
"""Requests of one connection that may wait for their answer at the same time (only ``operation`` waits)."""

MESSAGES_PER_TURN = 16
"""Messages that are taken before everything else in the daemon has its turn."""

HANG_UP_FACTOR = 4
"""A frame of more than this times ``max_message_bytes`` is not even read: libzmq closes the connection."""


class SocketInUse(Exception):
    """Another daemon owns the socket, or its path cannot be used; the message says which."""


class Refusal(Exception):
    """A request that is answered with an error; ``code`` is one of `protocol.EXIT_BY_ERROR`."""

    def __init__(self, code: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.details = details or {}


@dataclass(slots=True)
class Counters:
    """What came, and what could not be answered as asked.

    ``bad_requests`` were answered with an error; ``dropped_answers`` found no reader. ``endless``: connections that
    were ended because they sent more than any request is; ``crowded``: those for which there was no room. Connections
    as such are not counted: the socket monitor of libzmq (4.3.5) stops its I/O thread while nobody reads from it.
    """

    requests: int = 0
    bad_requests: int = 0
    busy: int = 0
    dropped_answers: int = 0
    endless: int = 0
    crowded: int = 0

    def document(self) -> dict[str, int]:
        """The counters by name."""
        counted: dict[str, int] = msgspec.to_builtins(self)
        return counted


Dispatch = Callable[[Request, Peer], Awaitable[dict[str, Any]]]
_encoder = msgspec.json.Encoder()


class Server:
    """Both sockets; `open` binds them, `serve` runs until cancelled, `close` removes them."""

    def __init__(self, path: str, roles: Roles, *, max_message_bytes: int, open_to_all: bool = False) -> None:
        self.path = path
        self.counters = Counters()
        self.roles = roles
        self.trouble = ""
        """What keeps operators from connecting; empty where nothing does."""
        self._open_to_all = open_to_all
        self._max_message_bytes = max_message_bytes
        self._intake = Intake((path, events_path(path)), max_message_bytes, self._count_endless)
        self._crowd = Crowd((path, events_path(path)), self._count_crowded)
        self._lock = -1
        self._context = zmq.asyncio.Context()
        self._router: zmq.asyncio.Socket | None = None
        self._publisher: zmq.Socket[bytes] | None = None
        self._inodes = [0, 0]
        self._pending: dict[bytes, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Take the socket's lock, then bind; SocketInUse where another daemon has it."""
        length = max(len(os.fsencode(path)) for path in (self.path, events_path(self.path)))
        if length > SOCKET_PATH_MAX_BYTES:
            raise SocketInUse(
                f"cannot use the socket path {self.path}: it is {length} bytes long and the kernel takes at most "
                f"{SOCKET_PATH_MAX_BYTES}; give a shorter one with --socket"
            )
        self._lock = self._locked()
        self._bind()

    def keep(self) -> bool:
        """Listen anew where the files are gone or not ours; return whether that was needed. Connections stay.

        OSError or SocketInUse where that cannot be; the lock, where it is gone too, is taken first.
        """
        assert self._router is not None
        assert self._publisher is not None
        if self.in_place:
            return False
        if _inode(f"{self.path}.lock") != os.fstat(self._lock).st_ino:
            lock = self._locked()
            os.close(self._lock)
            self._lock = lock
        for socket, path in ((self._router, self.path), (self._publisher, events_path(self.path))):
            with suppress(zmq.ZMQError):  # after a rebinding that failed there is nothing to unbind
                socket.unbind(f"ipc://{path}")
        self._listen()
        return True

    def _locked(self) -> int:
        """Take the lock file; return its descriptor."""
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(lock, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise SocketInUse(
                f"cannot listen on {self.path}: the gpuward with pid {owner} does already; "
                "stop it, or give this one another --socket, --state-dir and --runtime-dir"
            ) from None
        except OSError as error:
            os.close(lock)
            raise SocketInUse(
                f"cannot listen on {self.path}: {self.path}.lock cannot be locked ({error.strerror}); "
                "give a socket on a file system of this host with --socket"
            ) from None
        with suppress(OSError):  # a full disk is no reason not to answer
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        return lock

    def _bind(self) -> None:
        router = self._context.socket(zmq.ROUTER)
        publisher: zmq.Socket[bytes] = zmq.Context.shadow(self._context.underlying).socket(zmq.PUB)
        for socket in (router, publisher):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, self._max_message_bytes * HANG_UP_FACTOR)
            socket.setsockopt(zmq.HANDSHAKE_IVL, 2000)
            # With a domain libzmq refuses peers before ZMTP 3. Without, it takes any bytes for messages of ZMTP 1 and
            # keeps 8 KB of each such connection for good (4.3.5: 20,000 of them +150 MB, with it +0.4).
            socket.setsockopt(zmq.ZAP_DOMAIN, b"gpuward")
            socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6000)
            socket.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)
            socket.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        publisher.setsockopt(zmq.SNDHWM, 10_000)
        self._router, self._publisher = router, publisher
        self._listen()

    def _listen(self) -> None:
        assert self._router is not None
        assert self._publisher is not None
        before = os.umask(0o117)
        try:
            self._router.bind(f"ipc://{self.path}")
            self._publisher.bind(f"ipc://{events_path(self.path)}")
        except zmq.ZMQError as error:
            raise OSError(error.errno, error.strerror, self.path) from None
        finally:
            os.umask(before)
        self._inodes = self._found()
        self._give_to_group()

    def _found(self) -> list[int]:
        """Which files stand at the paths now; 0 for none."""
        return [_inode(self.path), _inode(events_path(self.path))]

    def _give_to_group(self) -> None:
        """Let operators connect, and others where they may look; a socket has one group, so that admins need it too."""
        paths = (self.path, events_path(self.path))
        group = self.roles.group
        try:
            gid = grp.getgrnam(group).gr_gid
            for path in paths:
                os.chown(path, -1, gid)
        except KeyError:
            self.trouble = f"there is no group {group}: only root and the daemon's user can use {self.path}"
        except PermissionError:
            self.trouble = f"the daemon's user is not in group {group}: only root and that user can use {self.path}"
        if self._open_to_all:
            for path in paths:
                Path(path).chmod(0o666)

    @property
    def in_place(self) -> bool:
        """Whether the paths still name our sockets (a cleaner or another program may have replaced them)."""
        return self._found() == self._inodes and 0 not in self._inodes

    async def serve(self, dispatch: Dispatch) -> None:
        """Receive until cancelled; a flood of messages leaves the rest of the daemon its turns."""
        assert self._router is not None
        self._keep(asyncio.create_task(self._intake.watch()))
        self._crowd.start()
        while True:
            for _ in range(MESSAGES_PER_TURN):
                frames = await self._router.recv_multipart(copy=False)
                self.counters.requests += 1
                self._receive(frames, dispatch)
            await asyncio.sleep(0)

    def _count_crowded(self, connections: int) -> None:
        self.counters.crowded += connections

    def _count_endless(self, connections: int) -> None:
        self.counters.endless += connections

    def _receive(self, frames: list[zmq.Frame], dispatch: Dispatch) -> None:
        sender = _return_address(frames)
        try:
            request = decode_request(self._body(frames))
        except BadRequest as error:
            self.counters.bad_requests += 1
            self._answer(sender, _error(error.request_id, error.code, str(error)))
            return
        identity = sender[0]
        waiting = self._pending.get(identity, 0)
        if waiting >= PENDING_PER_PEER:
            self.counters.busy += 1
            message = f"this connection has {PENDING_PER_PEER} requests waiting already"
            self._answer(sender, _error(request.id, "busy", message))
            return
        self._pending[identity] = waiting + 1
        peer = self.roles.peer(_address(frames[-1]))
        self._keep(asyncio.create_task(self._serve_one(sender, request, peer, dispatch)))

    def _body(self, frames: list[zmq.Frame]) -> bytes:
        body = [frame for frame in frames[1:] if len(frame)]
        if len(body) != 1 or len(frames) > MAX_FRAMES:
            raise BadRequest(f"cannot read a request of {len(frames) - 1} frames: send one JSON object in one frame")
        if len(body[0]) > self._max_message_bytes:
            raise BadRequest(
                f"cannot read a request of {len(body[0])} bytes: at most {self._max_message_bytes} are read "
                "(max-message-bytes in [control] of the host's settings)"
            )
        return body[0].bytes

    async def _serve_one(self, sender: list[bytes], request: Request, peer: Peer, dispatch: Dispatch) -> None:
        try:
            result = await dispatch(request, peer)
            answer = _encoded({"v": PROTOCOL_VERSION, "id": request.id, "ok": True, "result": result})
        except Refusal as refusal:
            answer = _error(request.id, refusal.code, str(refusal), refusal.details)
        except Exception as error:
            message = f"cannot {request.op}: unexpected {type(error).__name__}: {error}; the daemon ends, workers go on"
            self._answer(sender, _error(request.id, "failed", message))
            raise
        finally:
            self._pending[sender[0]] -= 1
            if not self._pending[sender[0]]:
                del self._pending[sender[0]]
        self._answer(sender, answer)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        """An unexpected error in a request is one of the daemon: the loop's exception handler ends it."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler({"message": "a request failed", "exception": error})

    def _answer(self, sender: list[bytes], answer: bytes) -> None:
        assert self._router is not None
        sending = asyncio.ensure_future(self._router.send_multipart([*sender, answer], flags=zmq.DONTWAIT))
        sending.add_done_callback(self._sent)

    def _sent(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled() and future.exception() is not None:
            self.counters.dropped_answers += 1

    def publish(self, event: dict[str, Any]) -> None:
        """Send an event to every subscriber; one that does not read loses it, and sees so by the gap in ``seq``."""
        if self._publisher is not None:
            with suppress(zmq.Again):
                self._publisher.send_multipart([b"event", _encoded(event)], flags=zmq.DONTWAIT)

    def close(self) -> None:
        """Close both sockets and remove their files; the lock goes with this process."""
        self._crowd.stop()
        for task in self._tasks:
            task.cancel()
        if self._router is not None:
            pairs = zip((self.path, events_path(self.path)), self._found(), self._inodes, strict=True)
            ours = [path for path, found, inode in pairs if found == inode]
            self._router.close(0)
            for path in ours:
                Path(path).unlink(missing_ok=True)
        if self._publisher is not None:
            self._publisher.close(0)
        self._context.destroy(0)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _inode(path: str) -> int:
    """The number of the file at a path; 0 for none."""
    try:
        return Path(path).stat().st_ino
    except OSError:
        return 0


def _encoded(document: dict[str, Any]) -> bytes:
    """JSON of a document; a character that cannot be sent (a lone surrogate) becomes a question mark."""
    try:
        return _encoder.encode(document)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(document), ensure_ascii=False).encode("utf-8", "replace")


def _error(request_id: str | None, code: str, message: str, details: dict[str, Any] | None = None) -> bytes:
    error = {"code": code, "message": message, "details": details or {}}
    return _encoded({"v": PROTOCOL_VERSION, "id": request_id, "ok": False, "error": error})


def _return_address(frames: list[zmq.Frame]) -> list[bytes]:
    """The sender's identity, and the empty frame after it if it sent one: a REQ socket waits for that."""
    delimited = len(frames) > 2 and not len(frames[1])
    return [frames[0].bytes, b""] if delimited else [frames[0].bytes]


def _address(frame: zmq.Frame) -> str | bytes | int | None:
    """The sender's ``Peer-Address``; None where there is none (it is set on ipc and tcp)."""
    try:
        return frame.get("Peer-Address")
    except zmq.ZMQError:
        return None
