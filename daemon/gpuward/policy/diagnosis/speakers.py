"""Who printed a line of a worker's output: what a client can have put there is told from what its engine says. Pure.

vLLM writes process and pid before each line of its engine's processes, also before each line of a message of several
lines (logger.py, system_utils.decorate_logs; since 0.10). The API server quotes its clients (a model's name, a value
that is refused), and prints tracebacks of requests bare. So while it serves, its lines prove nothing, and bare text
stays suspicious until a process speaks whose name and pid were known before: no client knows the pid.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final

SERVING_MARKS: Final = ("Application startup complete.", "Starting vLLM server on ", "Starting vLLM API server ")
"""Printed when requests can come; before, nobody but the worker itself has spoken."""

PROCESSES_MAX: Final = 1024
PROCESS_CHARS_MAX: Final = 80

_PROCESS: Final = re.compile(r"\([A-Za-z][\w.:]{0,40}(?: \w{1,10}=\w{1,10}){0,4} pid=\d{1,10}\)")
_PLACE: Final = re.compile(
    r"[A-Z]{4,8} \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})? \[?(?:[\w.-]{1,60}/){0,8}(?P<file>[\w.-]{1,60}):\d{1,6}\]"
)
_OF_THE_DEAD: Final = "core_client.py"
"""Where the API server tells that a process of its engine is gone; it quotes nobody."""

_QUOTING: Final = frozenset({"dump_input.py", "backend_xgrammar.py", "backend_guidance.py", "backend_outlines.py"})
"""Files of the engine that print requests."""

_ENGINE_FILES: Final = frozenset({
    "core.py", "core_client.py", "engine.py", "client.py", "launcher.py", "gpu_worker.py", "gpu_model_runner.py",
    "cpu_worker.py", "cpu_model_runner.py", "worker.py", "worker_base.py", "model_runner.py",
    "multiproc_executor.py", "multiproc_worker_utils.py", "uniproc_executor.py", "ray_distributed_executor.py",
    "mp_distributed_executor.py", "shm_broadcast.py", "parallel_state.py", "pynccl.py", "cuda_communicator.py",
    "linear.py", "cumem.py", "coordinator.py",
})  # fmt: skip
"""Of versions that do not name the process: who quotes clients is not among them."""

_NATIVE: Final = re.compile(
    r"\[rank\d{1,4}\]:|\[[EWF]\d{3,4} |terminate called|  what\(\):|Bus error|Segmentation fault|Aborted"
    r"|[\w.-]{1,64}:\d{1,10}:\d{1,10} \[\d{1,3}\] NCCL |NCCL WARN |ERROR:    \[Errno \d{1,3}\] error while attempting"
)
"""How libraries in C++ begin that write past Python, and how asyncio says that it cannot listen."""

_EXCEPTION: Final = re.compile(r"(?:[A-Za-z_]\w{0,60}\.){0,8}[A-Z]\w{0,60}(?:Error|Exception): ")
_OWN_BEGINS: Final = (_PLACE, _NATIVE, _EXCEPTION)
"""Bare lines that are no text of a client as long as none came before; a traceback of a request begins otherwise."""


class Speaker(IntEnum):
    """How far a line is believed: by all, by the host's own signatures only, by nobody."""

    ENGINE = 2
    UNKNOWN = 1
    CLIENT = 0


class Speakers:
    """Follows the lines of one run, in order."""

    def __init__(self) -> None:
        self.serving = False
        """Whether requests can have come."""
        self._known: set[str] = set()
        self._suspicious = False
        self.process = ""
        """The process that stands before the line that was heard last, where it is believed."""
        self._line = ""

    def hear(self, line: str) -> None:
        """Take in a line; one that begins with a carriage return goes on with the one before."""
        if line[:1] == "\r":
            return
        self._line = line
        self.process = ""
        if line[:1] == "(" and self._is_process(line):
            self._suspicious = False
        elif self.serving and not self._suspicious:
            self._suspicious = self._opens(line)
        if not self.serving and "tart" in line and any(mark in line for mark in SERVING_MARKS):
            self.serving = True

    @property
    def voice(self) -> tuple[str, bool]:
        """What the belief in a line depends on beside its text."""
        return self.process, self._suspicious

    def speaker(self) -> Speaker:
        """Return how far the line that was heard last is believed, taken for one that came while it served."""
        return self._named(self._line) if self.process else self._bare(self._line)

    def _is_process(self, line: str) -> bool:
        """Whether a process that is believed stands before the line."""
        process = line[: line.find(")", 0, PROCESS_CHARS_MAX) + 1]
        if process not in self._known:
            forged = self.serving and self._suspicious and self._known
            if forged or len(self._known) >= PROCESSES_MAX or _PROCESS.fullmatch(process) is None:
                return False
            self._known.add(process)
        self.process = process
        return True

    def _opens(self, line: str) -> bool:
        """Whether text of a client may follow behind this line, which no process is named in."""
        if not self._known:
            return line.startswith("ERROR:")
        return not (line.startswith("INFO:") or not line.strip() or any(known.match(line) for known in _OWN_BEGINS))

    def _named(self, line: str) -> Speaker:
        place = _PLACE.match(line, len(self.process) + 1)
        file = place["file"] if place is not None else ""
        if self.process[:10].lower() == "(apiserver":
            return Speaker.ENGINE if file == _OF_THE_DEAD else Speaker.CLIENT
        return Speaker.CLIENT if file in _QUOTING else Speaker.ENGINE

    def _bare(self, line: str) -> Speaker:
        if _NATIVE.match(line) and not self._suspicious:
            return Speaker.ENGINE
        if self._suspicious or line.startswith(("ERROR:", "INFO:", "WARNING:", "(")):
            return Speaker.CLIENT
        place = _PLACE.match(line)
        if place is not None:
            return Speaker.ENGINE if place["file"] in _ENGINE_FILES else Speaker.CLIENT
        return Speaker.ENGINE if _EXCEPTION.match(line) else Speaker.UNKNOWN
