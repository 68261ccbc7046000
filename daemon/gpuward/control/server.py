"""The daemon's end of the control socket: ROUTER for requests, PUB for events. It answers; it decides nothing.

Every request gets one answer. A frame that is no request is answered with an error, or dropped and counted where
there is nobody to answer. A slow or dead client delays nobody: answers to it are dropped and counted.
"""

from __future__ import annotations

import asyncio
import fcntl
import grp
import os
import pwd
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from gpuward.control.protocol import PROTOCOL_VERSION, SOCKET_PATH_MAX_BYTES, events_path
from gpuward.control.requests import BadRequest, Request, decode_request

MAX_FRAMES = 4
QUEUED_MESSAGES = 256
PENDING_PER_PEER = 64
"""Requests of one connection that may wait for their answer at the same time (only ``operation`` waits)."""


class SocketInUse(Exception):
    """Another daemon owns the socket, or its path cannot be used; the message says which."""


class Refusal(Exception):
    """A request that is answered with an error; ``code`` is one of `protocol.EXIT_BY_ERROR`."""

    def __init__(self, code: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.details = details or {}


class Role(IntEnum):
    """What a peer may do; each includes those before it."""

    READ = 1
    OPERATOR = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Peer:
    """Who sent a message, by SO_PEERCRED; None where the kernel did not say."""

    uid: int | None
    pid: int | None
    role: Role


@dataclass(slots=True)
class Counters:
    """What was not answered, and why."""

    requests: int = 0
    bad_requests: int = 0
    dropped_frames: int = 0
    dropped_answers: int = 0


Dispatch = Callable[[Request, Peer], Awaitable[dict[str, Any]]]
_encoder = msgspec.json.Encoder()


@dataclass(slots=True)
class Roles:
    """Peer credentials -> role: root and the daemon's user administrate, members of ``group`` operate, others read."""

    group: str
    _known: dict[int, Role] = field(default_factory=dict)

    def of(self, uid: int | None) -> Role:
        """Return the role of a user."""
        if uid is None:
            return Role.READ
        if uid in {0, os.geteuid()}:
            return Role.ADMIN
        if uid not in self._known:
            self._known[uid] = Role.OPERATOR if self._is_member(uid) else Role.READ
        return self._known[uid]

    def forget(self) -> None:
        """Look groups up anew (they may have changed)."""
        self._known.clear()

    def _is_member(self, uid: int) -> bool:
        try:
            user = pwd.getpwuid(uid)
            gid = grp.getgrnam(self.group).gr_gid
        except KeyError:
            return False
        return gid in os.getgrouplist(user.pw_name, user.pw_gid)


def parse_peer_address(address: str) -> tuple[int, int] | None:
    """Return (uid, pid) of ``HOST:UID:GID:PID`` as libzmq gives it for ipc; None for anything else."""
    parts = address.rsplit(":", 3)
    if len(parts) != 4 or not all(part.isascii() and part.isdecimal() for part in parts[1:]):
        return None
    return int(parts[1]), int(parts[3])


class Server:
    """Both sockets; `open` binds them, `serve` runs until cancelled, `close` removes them."""

    def __init__(self, path: str, *, group: str, max_message_bytes: int) -> None:
        self.path = path
        self.counters = Counters()
        self._group = group
        self._roles = Roles(group)
        self._max_message_bytes = max_message_bytes
        self._lock = -1
        self._context = zmq.asyncio.Context()
        self._router: zmq.asyncio.Socket | None = None
        self._publisher: zmq.Socket[bytes] | None = None
        self._inode = 0
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
        parent = Path(self.path).parent
        parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._lock)
            self._lock = -1
            raise SocketInUse(
                f"cannot listen on {self.path}: the gpuward with pid {owner} does already; "
                "stop it, or give this one another --socket, --state-dir and --runtime-dir"
            ) from None
        with suppress(OSError):  # a full disk is no reason not to answer
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        self._bind()

    def _bind(self) -> None:
        router = self._context.socket(zmq.ROUTER)
        publisher: zmq.Socket[bytes] = zmq.Context.shadow(self._context.underlying).socket(zmq.PUB)
        for socket in (router, publisher):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, self._max_message_bytes)
            socket.setsockopt(zmq.HANDSHAKE_IVL, 2000)
            socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6000)
            socket.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)
            socket.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        publisher.setsockopt(zmq.SNDHWM, 10_000)
        before = os.umask(0o117)
        try:
            router.bind(f"ipc://{self.path}")
            publisher.bind(f"ipc://{events_path(self.path)}")
        finally:
            os.umask(before)
        self._router, self._publisher = router, publisher
        self._inode = Path(self.path).stat().st_ino
        self._give_to_group()

    def _give_to_group(self) -> None:
        """Let operators connect; where the group does not exist (or this user is not in it) only this user can."""
        with suppress(KeyError, PermissionError):
            gid = grp.getgrnam(self._group).gr_gid
            for path in (self.path, events_path(self.path)):
                os.chown(path, -1, gid)

    @property
    def in_place(self) -> bool:
        """Whether the path still names our socket (a cleaner or another program may have replaced it)."""
        try:
            return Path(self.path).stat().st_ino == self._inode
        except OSError:
            return False

    async def serve(self, dispatch: Dispatch) -> None:
        """Receive until cancelled."""
        assert self._router is not None
        while True:
            frames = await self._router.recv_multipart(copy=False)
            self.counters.requests += 1
            self._receive(frames, dispatch)

    def _receive(self, frames: list[zmq.Frame], dispatch: Dispatch) -> None:
        identity = frames[0].bytes
        body = [frame for frame in frames[1:] if len(frame)]
        if len(body) != 1 or len(frames) > MAX_FRAMES:
            self.counters.bad_requests += 1
            message = f"cannot read a request of {len(frames) - 1} frames: send one JSON object in one frame"
            self._answer(identity, _error(None, "bad-request", message))
            return
        try:
            request = decode_request(body[0].bytes)
        except BadRequest as error:
            self.counters.bad_requests += 1
            self._answer(identity, _error(error.request_id, error.code, str(error)))
            return
        if self._pending.get(identity, 0) >= PENDING_PER_PEER:
            message = f"this connection has {PENDING_PER_PEER} requests waiting already"
            self._answer(identity, _error(request.id, "busy", message))
            return
        self._pending[identity] = self._pending.get(identity, 0) + 1
        task = asyncio.create_task(self._handle(identity, request, self._peer(frames[-1]), dispatch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, identity: bytes, request: Request, peer: Peer, dispatch: Dispatch) -> None:
        try:
            result = await dispatch(request, peer)
            answer = _encoder.encode({"v": PROTOCOL_VERSION, "id": request.id, "ok": True, "result": result})
        except Refusal as refusal:
            answer = _error(request.id, refusal.code, str(refusal), refusal.details)
        finally:
            left = self._pending[identity] - 1
            if left:
                self._pending[identity] = left
            else:
                del self._pending[identity]
        self._answer(identity, answer)

    def _answer(self, identity: bytes, answer: bytes) -> None:
        assert self._router is not None
        sending = asyncio.ensure_future(self._router.send_multipart([identity, answer], flags=zmq.DONTWAIT))
        sending.add_done_callback(self._sent)

    def _sent(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled() and future.exception() is not None:
            self.counters.dropped_answers += 1

    def _peer(self, frame: zmq.Frame) -> Peer:
        try:
            address = frame.get("Peer-Address")
        except zmq.ZMQError:
            return Peer(None, None, Role.READ)
        known = parse_peer_address(address) if isinstance(address, str) else None
        if known is None:
            return Peer(None, None, Role.READ)
        return Peer(known[0], known[1], self._roles.of(known[0]))

    def publish(self, event: dict[str, Any]) -> None:
        """Send an event to every subscriber; one that does not read loses it, and sees so by the gap in ``seq``."""
        if self._publisher is not None:
            with suppress(zmq.Again):
                self._publisher.send_multipart([b"event", _encoder.encode(event)], flags=zmq.DONTWAIT)

    def close(self) -> None:
        """Close both sockets and remove their files; the lock goes with this process."""
        for task in self._tasks:
            task.cancel()
        if self._router is not None:
            ours = self.in_place
            self._router.close(0)
            if ours:
                for path in (self.path, events_path(self.path)):
                    Path(path).unlink(missing_ok=True)
        if self._publisher is not None:
            self._publisher.close(0)
        self._context.destroy(0)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _error(request_id: str | None, code: str, message: str, details: dict[str, Any] | None = None) -> bytes:
    error = {"code": code, "message": message, "details": details or {}}
    return _encoder.encode({"v": PROTOCOL_VERSION, "id": request_id, "ok": False, "error": error})
