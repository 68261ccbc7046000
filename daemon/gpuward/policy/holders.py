"""Who the processes on the GPUs are, how to name them, and which of them are ours and should not be there. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from gpuward.policy.inventory import GpuProcess, Snapshot
from gpuward.policy.life import Goal, KillOrphan, Phase, Worker
from gpuward.policy.reasons import Wait

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


def still_listed(worker: Worker, snapshot: Snapshot, holders: Holders) -> Wait | None:
    """Say which process of the worker's ended runs the driver still lists on its GPUs; None where none is."""
    for uuid in worker.run_uuids:
        gpu = snapshot.gpu(uuid)
        for process in gpu.processes if gpu is not None else ():
            holder = holders.get(process.pid)
            if gpu is not None and holder is not None and holder.worker == worker.name and holder.kind != "foreign":
                text = f"waits for {named(process, holders)} to be gone from GPU {gpu.index}"
                return Wait(kind="process", text=text, on=uuid)
    return None


def orphans(workers: Mapping[str, Worker], snapshot: Snapshot, holders: Holders) -> Iterator[KillOrphan]:
    """Processes with a marker of ours, of no living run, on a GPU that a worker waits for. Never a foreign one."""
    if snapshot.state != "ok":
        return
    wanted = {
        uuid
        for worker in workers.values()
        if worker.phase in {Phase.RELEASING, Phase.BLOCKED} and worker.goal is Goal.UP
        for uuid in (*worker.run_uuids, *worker.device_uuids)
    }
    found = {
        (holder.worker, holder.run)
        for gpu in snapshot.gpus
        if gpu.uuid in wanted
        for process in gpu.processes
        if (holder := holders.get(process.pid)) is not None and holder.kind == "marked"
    }
    for name, run in sorted(found):
        worker = workers.get(name)
        if worker is None or not worker.alive or worker.run != run:
            yield KillOrphan(name, run)
