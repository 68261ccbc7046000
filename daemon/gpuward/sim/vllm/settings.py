"""What a simulated worker reads from its environment, next to what vLLM itself reads there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from gpuward.sim.vllm.faults import SYNTAX, Fault, parse_faults

HELP: Final = f"""\
environment:
  CUDA_VISIBLE_DEVICES        indices or UUIDs, as for vLLM; unset or empty: all GPUs, from GPU 0 on
  GPUWARD_SIM_CLAIMS=DIR      where memory is claimed, set by the daemon
  GPUWARD_SIM_GPUS=JSON       the host's GPUs: a list of index, uuid, total_bytes, reserved_bytes; set by the daemon
  GPUWARD_SIM_UUIDS=refuse    crash on a UUID in CUDA_VISIBLE_DEVICES, as vLLM before 0.24
  GPUWARD_SIM_START_S=1.0     time from exec to ready
  GPUWARD_SIM_TOKEN_S=0.005   time per generated token
  GPUWARD_SIM_WATCHDOG_S=1.0  how often the API server looks whether its engine lives (vLLM: 5 s)
  GPUWARD_SIM_TERM_AT_START=lost|exit   what a SIGTERM while the engine loads does; a second one always ends it
  GPUWARD_SIM_LIFE_S          every process of the tree ends by itself after this many seconds; unset: never
  GPUWARD_SIM_FAULT           faults, by comma
  GPUWARD_SIM_FAULT_FILE      a file with faults for one run only: whoever reads it removes it

faults, also by POST /sim/fault with {{"fault": "..."}}:
{SYNTAX}
"""


class Settings(NamedTuple):
    """Times in seconds; ``claims_dir`` None: hold nothing; ``life_s`` 0: without end."""

    claims_dir: str | None
    start_s: float
    token_s: float
    watchdog_s: float
    term_at_start: str
    life_s: int
    faults: tuple[Fault, ...]

    def fault(self, kind: str, phase: str) -> Fault | None:
        """Return the first fault of this kind and phase."""
        return next((fault for fault in self.faults if fault.kind == kind and fault.phase == phase), None)

    @property
    def lag_s(self) -> float:
        """How long the GPU keeps memory whose process has ended."""
        return max((fault.value / 1000 for fault in self.faults if fault.kind == "lag"), default=0.0)


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings. Raises ValueError for a number or fault that is none."""
    faults = parse_faults(environment.get("GPUWARD_SIM_FAULT", ""))
    return Settings(
        claims_dir=environment.get("GPUWARD_SIM_CLAIMS") or None,
        start_s=float(environment.get("GPUWARD_SIM_START_S") or 1.0),
        token_s=max(0.0005, float(environment.get("GPUWARD_SIM_TOKEN_S") or 0.005)),
        watchdog_s=max(0.05, float(environment.get("GPUWARD_SIM_WATCHDOG_S") or 1.0)),
        term_at_start=environment.get("GPUWARD_SIM_TERM_AT_START") or "lost",
        life_s=int(environment.get("GPUWARD_SIM_LIFE_S") or 0),
        faults=faults + _faults_for_once(environment.get("GPUWARD_SIM_FAULT_FILE")),
    )


def _faults_for_once(path: str | None) -> tuple[Fault, ...]:
    """Take the faults out of a file: of several workers that look, the one that renames it has them."""
    if not path:
        return ()
    taken = f"{path}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        Path(path).rename(taken)
        text = Path(taken).read_text(encoding="utf-8")
        Path(taken).unlink()
        return parse_faults(text)
    return ()
