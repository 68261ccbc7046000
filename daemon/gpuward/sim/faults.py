"""Faults that a simulated worker shows on command, written ``KIND[:VALUE][@PHASE[+SECONDS]]``, several by comma."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

SYNTAX: Final = """\
exit:N@PHASE         the API server ends with exit code N, its engine too
oom@PHASE            CUDA out of memory in the engine, in vLLM's words; at start: while it captures graphs
oom-above:0.8@PHASE  the same, only where gpu-memory-utilization is above this
cuda-fault@PHASE     an illegal memory access in the engine
engine-killed@PHASE  the engine gets SIGKILL
hang@PHASE           the engine does nothing any more; /health stays 200
ignore-term          the API server ignores SIGTERM
leak:100MiB/s@PHASE  every rank's memory grows until the GPU is full
lag:S                the GPU gives the memory back S seconds after its process has ended; from the environment only
PHASE is start (while the engine loads) or run (after ready, the default); +SECONDS waits within it: oom@run+1.5"""

_FAULT: Final = re.compile(
    r"(?P<kind>exit|oom|oom-above|cuda-fault|engine-killed|hang|ignore-term|leak|lag)(:(?P<value>[^@]+))?"
    r"(@(?P<phase>start|ready|run)(\+(?P<delay>\d+(\.\d+)?))?)?"
)
_RATE: Final = re.compile(r"(\d+(?:\.\d+)?)(KiB|MiB|GiB|B)/s")
_RATIO: Final = re.compile(r"[01]\.\d+")
_SECONDS: Final = re.compile(r"\d+(?:\.\d+)?")
_UNITS: Final = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


class Fault(NamedTuple):
    """One fault; ``delay_s`` counts within the phase.

    ``value``: exit code, bytes per second of a leak, a ratio in thousandths, a lag in ms, else 0.
    """

    kind: str
    value: int
    phase: str
    delay_s: float


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Return the faults in ``text``. Raises ValueError with the syntax."""
    return tuple(_fault(part.strip()) for part in text.split(",") if part.strip())


def _fault(text: str) -> Fault:
    match = _FAULT.fullmatch(text)
    if match is None:
        raise ValueError(f"unknown fault {text!r}; the faults are:\n{SYNTAX}")
    phase = "start" if match["phase"] == "start" else "run"
    return Fault(match["kind"], _value(match["kind"], match["value"], text), phase, float(match["delay"] or 0))


def _value(kind: str, value: str | None, text: str) -> int:
    if kind == "exit" and value is not None and value.isdigit() and int(value) <= 255:
        return int(value)
    if kind == "leak" and value is not None and (rate := _RATE.fullmatch(value)):
        return int(float(rate[1]) * _UNITS[rate[2]])
    if kind == "oom-above" and value is not None and _RATIO.fullmatch(value):
        return round(float(value) * 1000)
    if kind == "lag" and value is not None and _SECONDS.fullmatch(value):
        return round(float(value) * 1000)
    if kind not in ("exit", "leak", "oom-above", "lag") and value is None:
        return 0
    raise ValueError(f"bad value in fault {text!r}; the faults are:\n{SYNTAX}")
