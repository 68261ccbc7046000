"""What follows from the cause of an end that nobody asked for. Pure: a table per pool, and two bounds of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal, TypeAlias

from gpuward.config.fleet import Pool, Treatment
from gpuward.policy.worker.ladder import next_step, said
from gpuward.policy.worker.life import RunEnded, Worker
from gpuward.policy.worker.restart import GiveUp, Restart, after_failure, restart_delay_s

WAITS_MAX: Final = 10
WAIT_WINDOW_S: Final = 3600.0
"""So many starts in this time may end because a condition did not hold; they do not count as failures."""

FAULT_WINDOW_S: Final = 24 * 3600.0
"""The second fault on the same GPUs within this time is taken for one of the GPU, not of the program."""

OOM: Final = frozenset({"gpu-oom-startup", "gpu-oom-runtime"})

Answer: TypeAlias = Literal["fail", "wait", "restart", "move"]


def answer_to(pool: Pool, ended: RunEnded) -> Answer:
    """Return what this pool does about the cause; a cause that has no key of its own restarts."""
    cause = ended.exit.cause
    if cause in OOM and pool.on_oom == "hold":
        return "fail"
    said: Treatment = getattr(pool.on_cause, cause.replace("-", "_"), "auto")
    if said == "auto":
        return "fail" if ended.permanent and not _has_other_ports(pool, ended) else "restart"
    return said


def _has_other_ports(pool: Pool, ended: RunEnded) -> bool:
    """A taken port is final only where the pool names it; any other worker moves to another block."""
    return ended.exit.cause == "port-conflict" and pool.port is None


def after_end(worker: Worker, pool: Pool, ended: RunEnded, now_s: float) -> tuple[Worker, Restart | GiveUp]:
    """Return the worker with what it remembers of its ends, and when it starts again, if it does.

    ``pool``: as the run was started, with the steps of its ladder.
    """
    step = next_step(pool, ended)
    if step is not None:
        verdict = _restarts(worker, pool, ended, now_s)
        if isinstance(verdict, Restart):
            verdict = replace(verdict, reason=f"comes back smaller: {said(step)}; {verdict.reason}")
        return replace(worker, steps=(*worker.steps, step)), verdict
    match answer_to(pool, ended):
        case "fail":
            return worker, GiveUp(failures=worker.failures, reason=_way_out(worker, pool, ended))
        case "wait":
            return _waits(worker, pool, now_s)
        case "move":
            return _moves(worker, pool, ended, now_s)
        case "restart":
            if _has_other_ports(pool, ended) and worker.port_block is not None:
                worker = replace(worker, shunned_blocks=(*worker.shunned_blocks, worker.port_block))
            return worker, _restarts(worker, pool, ended, now_s)


def _way_out(worker: Worker, pool: Pool, ended: RunEnded) -> str:
    held = ended.exit.cause in OOM and pool.on_oom == "hold"
    why = 'on-oom is "hold"' if held else "not tried again"
    return f"{why}; {ended.hint or 'mend the cause'}, then gpuctl start {worker.name}"


def _waits(worker: Worker, pool: Pool, now_s: float) -> tuple[Worker, Restart | GiveUp]:
    recent = (*(at_s for at_s in worker.waits if now_s - at_s < WAIT_WINDOW_S), now_s)
    if len(recent) > WAITS_MAX:
        reason = f"gave up: {len(recent)} starts within {WAIT_WINDOW_S:g} s did not find what they wait for"
        return worker, GiveUp(failures=worker.failures, reason=reason)
    delay_s = restart_delay_s(pool.restart, len(recent))
    reason = (
        f"starts again when the condition holds, in {delay_s:g} s at the earliest: "
        f"wait {len(recent)} of {WAITS_MAX}, no failure is counted"
    )
    verdict = Restart(
        not_before_s=now_s + delay_s, failures=worker.failures, consecutive=worker.consecutive, reason=reason
    )
    return replace(worker, waits=recent), verdict


def _moves(worker: Worker, pool: Pool, ended: RunEnded, now_s: float) -> tuple[Worker, Restart | GiveUp]:
    recent = (*(at_s for at_s in worker.faults if now_s - at_s < FAULT_WINDOW_S), now_s)
    verdict = _restarts(worker, pool, ended, now_s)
    if len(recent) == 1:
        return replace(worker, faults=recent), verdict
    return replace(worker, faults=recent, avoid=worker.run_uuids), verdict


def _restarts(worker: Worker, pool: Pool, ended: RunEnded, now_s: float) -> Restart | GiveUp:
    ended_s = now_s if ended.ended_s is None else min(now_s, ended.ended_s)
    ready_for_s = ended_s - worker.ready_since_s if worker.ready_since_s is not None else 0.0
    return after_failure(
        pool.restart,
        failures=worker.failures,
        consecutive=worker.consecutive,
        ready_for_s=ready_for_s,
        now_s=now_s,
        jitter=ended.jitter,
    )
