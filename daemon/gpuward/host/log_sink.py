"""Where lines of the daemon's own log go when that is a stream: written, or dropped and counted, never waited for.

A full disk, a reader that is gone or does not read, a terminal that is closed or stopped (Ctrl-S): none of them may end
or delay the daemon. Raises nothing and blocks on nothing but a regular file.
"""

from __future__ import annotations

import os
import select
import stat
from collections import deque
from collections.abc import Callable

WAITING_MAX_BYTES = 256 * 1024
"""Lines that wait for a slow reader; what comes beyond is dropped."""

_ATOMIC_BYTES = select.PIPE_BUF
"""A pipe that polls as writable takes so many bytes without blocking (pipe(7))."""


class LogSink:
    """A text stream over a descriptor, for structlog and in the place of ``sys.stderr``.

    ``dropped``: lines that were never written. ``trouble``: why the newest one was not, empty where it was.
    ``tell_loss``: the line that says so in the log itself, once it can be written again.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, fd: int, tell_loss: Callable[[int], str]) -> None:
        self.dropped = 0
        self.trouble = ""
        self._tell_loss = tell_loss
        self._fd = _never_blocking(fd)
        self._shown = fd
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._untold = 0
        self._telling = 0
        self._torn = False
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    def write(self, text: str) -> int:
        """Take text in; what cannot be written now waits, as far as there is room."""
        line = text.encode(self.encoding, self.errors)
        if self._waiting_bytes + len(line) > WAITING_MAX_BYTES:
            self._write_waiting()
        if self._waiting_bytes + len(line) > WAITING_MAX_BYTES:
            self._drop(1, self.trouble or "its reader does not read")
        else:
            self._queue(line)
            self._write_waiting()
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Take several texts in."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what waits, as far as that goes without waiting."""
        self._write_waiting()

    def fileno(self) -> int:
        """Return the descriptor that was given."""
        return self._shown

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._shown)

    def _queue(self, line: bytes) -> None:
        if self._untold:
            told = self._tell_loss(self._untold).encode(self.encoding, self.errors)
            line = b"\n" * (self._torn and not self._waiting) + told + b"\n" + line
            self._telling, self._untold = self._telling + self._untold, 0
        self._waiting.append(line)
        self._waiting_bytes += len(line)

    def _write_waiting(self) -> None:
        while self._waiting:
            try:
                written = self._write_some()
            except OSError as error:
                self._drop_waiting(error.strerror or str(error))
                return
            if written == 0:
                return
            self._written(written)

    def _written(self, count: int) -> None:
        """Take what was written off the front; a line that was written in part stays as its rest."""
        self._waiting_bytes -= count
        self._torn = False
        while count:
            line = self._waiting.popleft()
            self._torn = count < len(line)
            if self._torn:
                self._waiting.appendleft(line[count:])
            count -= min(count, len(line))
        self.trouble = ""
        if not self._waiting:
            self._telling = 0

    def _write_some(self) -> int:
        """Bytes that were taken, 0 where there is no room now."""
        if not self._poll.poll(0):
            return 0
        chunk = bytearray()
        for line in self._waiting:
            chunk += line
            if len(chunk) >= _ATOMIC_BYTES:
                break
        try:
            return os.write(self._fd, chunk[:_ATOMIC_BYTES])
        except BlockingIOError:
            return 0

    def _drop(self, lines: int, trouble: str) -> None:
        self.dropped += lines
        self._untold += lines
        self.trouble = trouble

    def _drop_waiting(self, trouble: str) -> None:
        self._drop(len(self._waiting), trouble)
        self._untold += self._telling
        self._telling = self._waiting_bytes = 0
        self._waiting.clear()


def _never_blocking(fd: int) -> int:
    """A descriptor of the same pipe or terminal that does not block; ``fd`` itself where none can be had.

    O_NONBLOCK on ``fd`` would hold for every process that shares it, the shell included.
    """
    mode = os.fstat(fd).st_mode
    if not stat.S_ISFIFO(mode) and not stat.S_ISCHR(mode):
        return fd
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:
        return fd
