"""Faults that a simulated worker shows on command, written ``KIND[:VALUE][@PHASE[+SECONDS]]``, several by comma."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from gpuward.sim.vllm.errors import ERRORS

SYNTAX: Final = f"""\
exit:N@PHASE         the API server ends with exit code N, its engine too
oom@PHASE            CUDA out of memory in the engine, in vLLM's words; at start: while it captures graphs
oom-above:0.8@PHASE  the same, only where gpu-memory-utilization is above this
oom-at:60GiB         the same as soon as one rank would hold more than this; from the environment only
overshoot:2GiB       graph capture takes this much beyond the budget, and keeps it; from the environment only
error:NAME@PHASE     the worker ends in vLLM's words for NAME: {", ".join(ERRORS)}
cuda-fault@PHASE     an illegal memory access in the engine
engine-killed@PHASE  the engine gets SIGKILL
first-request        the engine dies of its first request, as of a kernel that the model does not fit
hang@PHASE           the engine does nothing any more; /health stays 200
ignore-term          the API server ignores SIGTERM
leak:100MiB/s@PHASE  every rank's memory grows until the GPU is full
lag:S                the GPU gives the memory back S seconds after its process has ended; from the environment only
PHASE is start (while the engine loads) or run (after ready, the default); +SECONDS waits within it: oom@run+1.5"""

_FAULT: Final = re.compile(
    r"(?P<kind>exit|oom|oom-above|oom-at|overshoot|error|cuda-fault|engine-killed|first-request|hang"
    r"|ignore-term|leak|lag)(:(?P<value>[^@]+))?"
    r"(@(?P<phase>start|ready|run)(\+(?P<delay>\d+(\.\d+)?))?)?"
)
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)(KiB|MiB|GiB|B)(/s)?")
_RATIO: Final = re.compile(r"[01]\.\d+")
_SECONDS: Final = re.compile(r"\d+(?:\.\d+)?")
_UNITS: Final = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


class Fault(NamedTuple):
    """One fault; ``delay_s`` counts within the phase.

    ``value``: exit code, bytes (per second for a leak), a ratio in thousandths, a lag in ms, else 0. ``name``: which
    of the errors.
    """

    kind: str
    value: int
    phase: str
    delay_s: float
    name: str = ""


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Return the faults in ``text``. Raises ValueError with the syntax."""
    return tuple(_fault(part.strip()) for part in text.split(",") if part.strip())


def _fault(text: str) -> Fault:
    match = _FAULT.fullmatch(text)
    if match is None:
        raise ValueError(f"unknown fault {text!r}; the faults are:\n{SYNTAX}")
    kind, value = match["kind"], match["value"] or ""
    number = _value(kind, value)
    if number is None:
        raise ValueError(f"bad value in fault {text!r}; the faults are:\n{SYNTAX}")
    name = value if kind == "error" else ""
    only_at_start = bool(name) and ERRORS[name].process == "api"
    phase = "start" if only_at_start or match["phase"] == "start" else "run"
    return Fault(kind, number, phase, float(match["delay"] or 0), name)


def _value(kind: str, value: str) -> int | None:
    """Return the number in ``value``, 0 where none belongs there, None where it is not what ``kind`` takes."""
    match kind:
        case "exit":
            return int(value) if value.isdigit() and int(value) <= 255 else None
        case "leak" | "oom-at" | "overshoot":
            size = _SIZE.fullmatch(value)
            return int(float(size[1]) * _UNITS[size[2]]) if size and bool(size[3]) == (kind == "leak") else None
        case "oom-above":
            return round(float(value) * 1000) if _RATIO.fullmatch(value) else None
        case "lag":
            return round(float(value) * 1000) if _SECONDS.fullmatch(value) else None
        case "error":
            return 0 if value in ERRORS else None
        case _:
            return None if value else 0
