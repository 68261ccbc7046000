"""What a new daemon makes of the records of an earlier one. Pure; `running` then looks for the runs themselves."""

from __future__ import annotations

from dataclasses import replace

from gpuward.policy.life import Goal, Phase, Worker


def resumed(worker: Worker, *, same_boot: bool, now_s: float) -> Worker:
    """A worker as it goes on after its record was read.

    Monotonic times of an earlier boot mean nothing, and none of its processes lives: it starts anew if it is wanted up.
    """
    if not same_boot:
        worker = _after_a_boot(worker, now_s)
    if worker.halted and worker.goal is Goal.UP and worker.phase is Phase.STOPPED:
        reason = "starts again with the daemon"
        return replace(
            worker, halted=False, phase=Phase.BLOCKED, reason=reason, since_s=now_s, not_before_s=now_s, deadline_s=None
        )
    return worker


def _after_a_boot(worker: Worker, now_s: float) -> Worker:
    fresh = replace(
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
    if worker.phase in {Phase.STOPPED, Phase.FAILED}:
        return fresh
    if worker.goal is Goal.DOWN:
        return replace(fresh, phase=Phase.STOPPED, reason="stopped by command; the host was rebooted meanwhile")
    return replace(fresh, phase=Phase.BLOCKED, reason="starts again after a reboot of the host")
