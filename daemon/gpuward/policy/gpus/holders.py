"""Who the processes on the GPUs are, how to name them, and which of them are ours and should not be there. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from gpuward.policy.gpus.inventory import GpuProcess

GIB: Final = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that a sample lists.

    ``ours``: of the living run of ``worker``. ``former``: was of a run of ``worker`` that has ended, and is listed
    still. ``marked``: carries the marker of ``run`` of ``worker`` and belongs to no run that is watched. ``foreign``.
    """

    kind: Literal["ours", "former", "marked", "foreign"]
    worker: str = ""
    run: int = 0
    user: str = ""
    program: str = ""


Holders = Mapping[int, Holder]
NOBODY: Holders = MappingProxyType({})
"""By pid; who is not in it is foreign and nothing is known of it."""


def named(process: GpuProcess, holders: Holders) -> str:
    """Name a process for a sentence: pid, user or worker, program, bytes."""
    holder = holders.get(process.pid)
    size = f", {process.used_bytes / GIB:.1f} GiB" if process.used_bytes is not None else ""
    if holder is not None and holder.worker:
        run = f" run {holder.run}, an orphan" if holder.kind == "marked" else ""
        return f"pid {process.pid} ({holder.worker}{run}{size})"
    if holder is not None and holder.program:
        return f"pid {process.pid} ({holder.user}: {holder.program}{size})"
    return f"pid {process.pid} ({process.name or 'unknown'}{size})"
