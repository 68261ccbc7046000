"""The asking end of the control socket, for gpuctl and for scripts: blocking, one request at a time.

Imports little, since gpuctl pays for it on every call. Never asks twice: whoever asks decides what a failure means.
"""

from __future__ import annotations

import json
import os
import stat

from gpuward.control import protocol, zmtp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Any, Self

DEFAULT_TIMEOUT_S = 10.0


class Unreachable(Exception):
    """No daemon answers; the text says what is wrong with the socket and the way out."""


class NotAllowed(Unreachable):
    """The kernel does not let this user at the socket."""


class Refused(Exception):
    """The daemon's error answer: ``code`` (a key of `protocol.EXIT_BY_ERROR`), a sentence, details for machines."""

    def __init__(self, code: str, message: str, details: dict[str, Any]) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


class Client:
    """A connection to the daemon at ``socket_path``, opened by the first call and again after a failed one."""

    def __init__(self, socket_path: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """``timeout_s`` bounds each call, connecting included."""
        self.socket_path = socket_path
        self._timeout_s = timeout_s
        self._connection: zmtp.Connection | None = None
        self._asked = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; a later call connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def call(self, op: str, args: dict[str, Any] | None = None, timeout_s: float | None = None) -> Any:  # noqa: ANN401
        """Ask ``op`` and return its result, an object whose shape is the one `documents` gives for this op.

        Raises Unreachable, or Refused where the daemon answers with an error.
        """
        patience_s = self._timeout_s if timeout_s is None else timeout_s
        self._asked += 1
        request_id = f"{os.getpid()}-{self._asked}"
        frame = protocol.request(op, args or {}, request_id)
        try:
            answer = self._answer_to(request_id, self._sent(frame, patience_s), patience_s)
        except BaseException as error:
            self.close()
            if isinstance(error, PermissionError):
                raise NotAllowed(_why_not_allowed(self.socket_path)) from error
            if isinstance(error, OSError | zmtp.NotZmtp):
                raise Unreachable(why_unreachable(self.socket_path, error, patience_s)) from error
            raise
        if answer.get("ok") is True:
            return answer.get("result", {})
        raise _refusal(answer.get("error"))

    def _sent(self, frame: bytes, patience_s: float) -> zmtp.Connection:
        """Send, on a new connection where the daemon closed the old one: what cannot be sent was never received."""
        if self._connection is not None:
            try:
                self._connection.send(b"", frame, timeout_s=patience_s)
            except (BrokenPipeError, ConnectionResetError):
                self.close()
            else:
                return self._connection
        self._connection = connect(self.socket_path, "DEALER", patience_s)
        self._connection.send(b"", frame, timeout_s=patience_s)
        return self._connection

    def _answer_to(self, request_id: str, connection: zmtp.Connection, patience_s: float) -> dict[str, Any]:
        """Return the answer with our id, or with none: the daemon could not read what we sent."""
        while True:
            frames = connection.receive(timeout_s=patience_s)
            try:
                answer = json.loads(frames[-1])
            except (ValueError, RecursionError) as error:
                raise zmtp.NotZmtp(f"an answer that is not JSON: {frames[-1][:64]!r}") from error
            if not isinstance(answer, dict):
                raise zmtp.NotZmtp(f"an answer that is no object: {frames[-1][:64]!r}")
            if answer.get("id") in (request_id, None):
                return answer


def connect(path: str, socket_type: str, timeout_s: float) -> zmtp.Connection:
    """Return a connection to the socket at ``path``; Unreachable where the path cannot be one."""
    length = len(os.fsencode(path))
    if length > protocol.SOCKET_PATH_MAX_BYTES:
        raise Unreachable(
            f"cannot reach gpuward: the socket path is {length} bytes long, a Unix socket takes at most "
            f"{protocol.SOCKET_PATH_MAX_BYTES}; use a shorter one: {path}"
        )
    if not path or "\0" in path:
        raise Unreachable(f"cannot reach gpuward: {path!r} is no socket path; give one with --socket PATH")
    return zmtp.Connection(path, socket_type, timeout_s=timeout_s)


def why_unreachable(path: str, error: Exception, patience_s: float) -> str:
    """Return the sentence for an operator whose request to the socket at ``path`` ended in ``error``."""
    match error:
        case FileNotFoundError() | NotADirectoryError():
            why = f"there is no socket {path}; is the daemon running? If elsewhere: --socket PATH or $GPUWARD_SOCKET"
        case ConnectionRefusedError() if not _is_socket(path):
            why = f"{path} is not a socket; name the daemon's one with --socket PATH or $GPUWARD_SOCKET"
        case ConnectionRefusedError():
            why = f"nobody listens on {path}: the daemon that made it is gone; start it again"
        case TimeoutError() | BlockingIOError():
            why = f"nothing answers on {path} within {patience_s:g} s"
        case ConnectionError():
            why = f"the daemon at {path} hung up ({error}); is it being stopped?"
        case zmtp.NotZmtp():
            why = f"what listens on {path} is not gpuward ({error})"
        case _:
            why = f"{path}: {error}"
    return f"cannot reach gpuward: {why}"


def _why_not_allowed(path: str) -> str:
    """The sentence for a user whom the kernel does not let at the socket: whose it is, and the way in."""
    import grp
    import pwd

    def named(number: int, names: Callable[[int], Sequence[object]]) -> str:
        try:
            return str(names(number)[0])
        except KeyError:
            return str(number)

    try:
        known = os.stat(path)  # noqa: PTH116
        what = path
    except OSError:
        what = os.path.dirname(path)  # noqa: PTH120
        known = os.stat(what)  # noqa: PTH116
    group, me = named(known.st_gid, grp.getgrgid), named(os.geteuid(), pwd.getpwuid)
    whose = f"{what} belongs to {named(known.st_uid, pwd.getpwuid)}:{group} (mode {stat.S_IMODE(known.st_mode):04o})"
    return f"not permitted: {whose}, you are {me}; to operate, join group {group}: usermod -aG {group} {me}"


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)  # noqa: PTH116 - pathlib is not worth its import here
    except OSError:
        return True


def _refusal(error: object) -> Refused:
    if not isinstance(error, dict):
        return Refused("failed", f"the daemon answered neither a result nor an error: {error!r}", {})
    details = error.get("details")
    return Refused(
        str(error.get("code", "failed")),
        str(error.get("message", "the daemon gave no reason")),
        details if isinstance(details, dict) else {},
    )
