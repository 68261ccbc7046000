"""Documents of a worker's runs and the sentences of ``gpuctl why``. They show; they decide nothing."""

from __future__ import annotations

from typing import Any

from gpuward.host.records import RunRecord
from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.worker.ladder import said
from gpuward.policy.worker.life import Goal, Phase, Worker
from gpuward.supervisor.journal import rfc3339

Document = dict[str, Any]


def last_exit_document(exit_: LastExit) -> Document:
    """How the latest ended run ended, of ``gpuctl status -o json``."""
    return {
        "cause": exit_.cause,
        "code": exit_.code,
        "signal": exit_.signal,
        "at": rfc3339(exit_.at),
        "evidence": list(exit_.evidence),
        "reason": exit_.reason,
        "ended_by": exit_.ended_by,
        "by": exit_.by.user if exit_.by is not None else None,
    }


def run_document(record: RunRecord, indices: dict[str, int]) -> Document:
    """One ended run of ``gpuctl why -o json``; ``indices``: the present index of each GPU by UUID."""
    return {
        "run": record.run,
        "ended_at": rfc3339(record.exit.at),
        "ran_s": record.ran_s,
        "cause": record.exit.cause,
        "code": record.exit.code,
        "signal": record.exit.signal,
        "reason": record.reason,
        "ended_by": record.exit.ended_by,
        "by": record.exit.by.user if record.exit.by is not None else None,
        "hint": record.hint,
        "evidence": list(record.exit.evidence),
        "gpu_uuids": list(record.gpu_uuids),
        "peak_bytes": record.peak_bytes,
        "memory": [
            {
                "gpu": indices.get(uuid),
                "gpu_uuid": uuid,
                "peak_bytes": record.peak_bytes.get(uuid),
                "claim_bytes": record.claim_bytes.get(uuid),
                "total_bytes": record.total_bytes.get(uuid),
            }
            for uuid in record.gpu_uuids
        ],
        "step": said(record.step) if record.step is not None else None,
        "descendants_killed": record.descendants_killed,
        "max_rss_bytes": record.max_rss_bytes,
        "log_lost_bytes": record.log_lost_bytes,
        "samples": [
            {"at": rfc3339(sample.at), "used_bytes": sample.used_bytes, "free_bytes": sample.free_bytes}
            for sample in record.samples
        ],
    }


def sentences(worker: Worker, now_s: float) -> list[str]:
    """What a worker is doing, since when, and what follows, for ``gpuctl why``; ``now_s`` is monotonic."""
    since_s = max(0.0, now_s - worker.since_s)
    told = [
        f"{worker.name} has been in phase {worker.phase} for {since_s:.0f} s: {worker.reason}.",
        "Its goal is up." if worker.goal is Goal.UP else "Its goal is down: it was stopped by command.",
    ]
    if worker.deadline_s is not None:
        left_s = max(0.0, worker.deadline_s - now_s)
        follows = {
            Phase.STARTING: "it is stopped and counted as a failure if it is not ready by then",
            Phase.STOPPING: "the whole tree is killed if it is not gone by then",
            Phase.DRAINING: "it is stopped whoever still depends on it",
        }.get(worker.phase, "the next step follows")
        told.append(f"Deadline in {left_s:.0f} s: {follows}.")
    if worker.phase in {Phase.BACKOFF, Phase.RELEASING} and worker.not_before_s > now_s:
        told.append(f"Next start in {worker.not_before_s - now_s:.1f} s at the earliest.")
    if worker.phase is Phase.FAILED:
        told.append(f"Nothing happens by itself any more; mend the cause, then: gpuctl start {worker.name}.")
    if worker.failures:
        told.append(
            f"{len(worker.failures)} failure{'s' * (len(worker.failures) != 1)} on record within the restart window."
        )
    if worker.steps:
        steps = ", ".join(said(step) for step in worker.steps)
        told.append(f"It has less than its pool asks for: {steps}. gpuctl reset {worker.name} undoes it.")
    if worker.last_exit is not None:
        told.append(_exit_sentence(worker.last_exit))
    return told


def _exit_sentence(exit_: LastExit) -> str:
    how = "it left no exit code (it never came to run, or its keeper was lost)"
    if exit_.signal is not None:
        how = f"it was killed by signal {exit_.signal}"
    elif exit_.code is not None:
        how = f"it ended with code {exit_.code}"
    return f"Run {exit_.run} ended at {rfc3339(exit_.at)}: {how}; the cause is {exit_.cause}."
