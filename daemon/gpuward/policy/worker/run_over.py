"""What follows when a run is over, whichever way: rest, the next start, or failed. Pure."""

from __future__ import annotations

from dataclasses import replace

from gpuward.config.fleet import Pool
from gpuward.policy.reasons import Wait
from gpuward.policy.worker.life import Adapted, Goal, Phase, RunEnded, StartRefused, Step, TakeSample, Worker
from gpuward.policy.worker.phases import enter, onward
from gpuward.policy.worker.response import after_end
from gpuward.policy.worker.restart import GiveUp

REFUSED_PAUSE_S = 1.0
REFUSED_PAUSE_MAX_S = 30.0
"""A start that was refused is tried again after the first; the pause doubles, up to the second, while it goes on."""

MOVED_PAUSE_S = 0.05
"""A worker that moves to other ports tries again after this."""


def over(worker: Worker, event: RunEnded | StartRefused, pool: Pool, now_s: float) -> Step:
    """The run is over, or has never come to be: what follows depends on why it was being ended, if it was."""
    if worker.run != event.run or not worker.alive:
        return worker, ()
    ending = worker.ending
    ended = replace(worker, ending=None, killed=False, left=())
    if isinstance(event, RunEnded):
        ended = replace(ended, last_exit=replace(event.exit, reason=event.reason), ended_s=now_s, refusals=0)
    if worker.goal is Goal.DOWN or (ending is not None and ending.then == "rest"):
        none = isinstance(event, StartRefused) and not event.spent
        return onward(replace(ended, run=worker.run - none, ready_since_s=None), Phase.STOPPED, now_s), ()
    again = ending is not None and ending.then == "start"
    if isinstance(event, StartRefused):  # a run that somebody waits for keeps its number
        return _refused(ended if again or event.spent else replace(ended, run=worker.run - 1), event, now_s)
    if again:
        ended = replace(ended, restarts=worker.restarts + 1, not_before_s=max(now_s, worker.not_before_s))
        return onward(ended, Phase.RELEASING, now_s), (TakeSample(),)
    return _unasked_end(ended, event, pool, now_s)


def _refused(worker: Worker, event: StartRefused, now_s: float) -> Step:
    """Try again, later each time that the refusal repeats; at once on other ports."""
    pause_s = min(REFUSED_PAUSE_MAX_S, REFUSED_PAUSE_S * 2.0 ** min(worker.refusals, 62))
    worker = replace(worker, refusals=worker.refusals + 1, ready_since_s=None)
    text = event.reason
    if event.ports is None:
        text = f"{text}; refusal {worker.refusals}"
    else:
        pause_s = MOVED_PAUSE_S
        worker = replace(worker, port_block=event.ports[0], port=event.ports[1])
    blocked = enter(worker, Phase.BLOCKED, event.reason, now_s, wait=Wait(kind=event.kind, text=text))
    return replace(blocked, not_before_s=now_s + pause_s), ()


def _unasked_end(ended: Worker, event: RunEnded, pool: Pool, now_s: float) -> Step:
    if pool.restart.mode == "never" and not event.permanent:
        return _rest(ended, Phase.STOPPED, f"{event.reason}; restart mode is never", now_s)
    steps_before = len(ended.steps)
    ended, verdict = after_end(ended, pool, event, now_s)
    reason = f"{event.reason}; {verdict.reason}"
    if isinstance(verdict, GiveUp):
        return _rest(replace(ended, failures=verdict.failures), Phase.FAILED, reason, now_s)
    again = replace(
        ended,
        failures=verdict.failures,
        consecutive=verdict.consecutive,
        restarts=ended.restarts + 1,
        not_before_s=verdict.not_before_s,
    )
    adapted = (Adapted(ended.name, ended.run, step) for step in ended.steps[steps_before:])
    return enter(again, Phase.RELEASING, reason, now_s), (TakeSample(), *adapted)


def _rest(worker: Worker, phase: Phase, reason: str, now_s: float) -> Step:
    """Come to rest: nothing of the run is left, and nothing is going to start."""
    return enter(replace(worker, ready_since_s=None), phase, reason, now_s), ()
