"""Entering a phase and waiting in it; the one place where the sentence of a worker is put together. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from gpuward.policy.reasons import By, Ending, Wait
from gpuward.policy.worker.life import ALIVE, Phase, Worker

_WAIT_ALONE: Final = frozenset({Phase.BLOCKED, Phase.STARTING})
"""Phases in which what is missing says all; in the others it stands behind why the worker is there."""


def enter(
    worker: Worker,
    phase: Phase,
    why: str,
    now_s: float,
    deadline_s: float | None = None,
    *,
    wait: Wait | None = None,
    by: By | None = None,
) -> Worker:
    """Put the worker into a phase; ``since_s`` moves only when the phase does. ``by``: who asked for it, if anybody."""
    since_s = worker.since_s if phase is worker.phase else now_s
    return _told(replace(worker, phase=phase, why=why, by=by, wait=wait, since_s=since_s, deadline_s=deadline_s))


def onward(
    worker: Worker, phase: Phase, now_s: float, deadline_s: float | None = None, *, wait: Wait | None = None
) -> Worker:
    """Put the worker into the next phase of what it is about: why, and who asked, stay."""
    return enter(worker, phase, worker.why, now_s, deadline_s, wait=wait, by=worker.by)


def waiting(worker: Worker, wait: Wait | None) -> Worker:
    """The worker where it is, waiting for this (None: for nothing)."""
    return worker if worker.wait == wait else _told(replace(worker, wait=wait))


def ending_as(worker: Worker, ending: Ending) -> Worker:
    """The worker where it is, its run being ended for this reason now; a hang stays the cause of the run's end."""
    if worker.ending is not None:
        ending = replace(ending, hung=worker.ending.hang)
    return _told(replace(worker, ending=ending, why=ending.why, by=ending.by))


def sentence(worker: Worker) -> str:
    """What a person is told of the phase that a worker is in."""
    if worker.wait is None:
        return worker.why
    return worker.wait.text if worker.phase in _WAIT_ALONE else f"{worker.why}; {worker.wait.text}"


def _told(worker: Worker) -> Worker:
    return replace(worker, reason=sentence(worker))


def of_this_version(worker: Worker) -> Worker:
    """A worker as a record of an earlier version has it (``then`` and one sentence), in the words of this one."""
    if not worker.why:
        worker = replace(worker, why=worker.reason)
    if worker.then is None or worker.ending is not None or worker.phase not in ALIVE:
        return replace(worker, then=None)
    endings = {
        "stop": Ending(kind="stop", why=worker.reason, then="rest"),
        "start": Ending(kind="restart", why=worker.reason, then="start"),
        "fail": Ending(kind="start-timeout", why=worker.reason, then="judge"),
        "hang": Ending(kind="hang", why=worker.reason, then="judge"),
        "halt": Ending(kind="halt", why=worker.reason, then="rest"),
    }
    return replace(worker, then=None, ending=endings[worker.then])


def at_present(worker: Worker, now_s: float) -> str:
    """The sentence with the time that is left until the next start or try, where one is set."""
    left_s = worker.not_before_s - now_s
    if left_s <= 0:
        return worker.reason
    if worker.phase is Phase.BLOCKED and worker.refusals:
        return f"{worker.reason}, tries again in {left_s:.3g} s"
    waits = worker.phase in {Phase.BACKOFF, Phase.RELEASING}
    return f"{worker.reason}; starts again in {left_s:.3g} s" if waits else worker.reason
