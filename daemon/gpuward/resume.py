"""What a new daemon makes of the records of an earlier one. Pure; `runner` then looks for the runs themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gpuward.config.fleet import Pool
from gpuward.host.records import StoredWorker
from gpuward.policy.worker import Goal, Phase, Worker


def resumed(
    stored: Mapping[str, StoredWorker], pools: Mapping[str, Pool], boot_id: str, now_s: float
) -> dict[str, Worker]:
    """Workers as they go on; those of pools that no longer exist are left out.

    Monotonic times of an earlier boot mean nothing: such a worker starts anew if it is wanted up.
    """
    return {name: _one(record, boot_id, now_s) for name, record in stored.items() if record.worker.pool in pools}


def _one(record: StoredWorker, boot_id: str, now_s: float) -> Worker:
    worker = record.worker
    if record.boot_id != boot_id:
        worker = replace(
            worker,
            since_s=now_s,
            deadline_s=None,
            started_s=None,
            ready_since_s=None,
            ended_s=None,
            not_before_s=now_s,
            failures=(),
            consecutive=0,
            then=None,
            killed=False,
        )
        if worker.goal is Goal.UP and worker.phase not in {Phase.STOPPED, Phase.FAILED}:
            return replace(worker, phase=Phase.BLOCKED, reason="starts again after a reboot of the host")
        if worker.phase is not Phase.FAILED and not worker.halted:
            return replace(worker, phase=Phase.STOPPED)
    if worker.halted and worker.goal is Goal.UP and worker.phase is Phase.STOPPED:
        return replace(
            worker,
            halted=False,
            phase=Phase.BLOCKED,
            reason="starts again with the daemon",
            since_s=now_s,
            not_before_s=now_s,
        )
    return worker
