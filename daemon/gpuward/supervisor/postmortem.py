"""What a dead run tells: its end record, what its keeper left behind, its log; and with what the host knew, its cause.

`examine` runs in a thread: logs are long. It kills nobody; what a lost keeper left is gone before (`sweeping`).
`judged` is for the loop: what the GPUs told until then counts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from gpuward.engines.launch import CannotLaunch
from gpuward.host.keeper import END_UNWRITTEN
from gpuward.host.processes import Identity
from gpuward.host.runs import Ending, Runs
from gpuward.policy.diagnosis import log_findings as findings
from gpuward.policy.diagnosis.gpu_evidence import LastMoments
from gpuward.policy.diagnosis.verdict import RunEnd, Verdict, judge, nothing_found, spawn_failed
from gpuward.policy.reasons import Ending as EndedFor
from gpuward.supervisor.output import LogReading


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadRun:
    """A run whose keeper is gone, and what the daemon knew of it.

    ``stopped_at``: wall time at which the daemon itself began to end it; None where it did not. ``keeper_code``: the
    exit code of the keeper, a signal as a negative number; None where it was no child of this daemon's.
    """

    worker: str
    run: int
    marker: str
    main: Identity | None
    phase: Literal["starting", "ready"]
    commanded: bool
    start_timed_out: bool
    log: LogReading | None = None
    hung: str = ""
    unready: str = ""
    stopped_at: float | None = None
    ending: EndedFor | None = None
    keeper_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """``refused``: never started, for a reason that may pass; otherwise ``verdict`` says why the run ended."""

    dead: DeadRun
    ending: Ending
    verdict: Verdict
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What `examine` found; ``log`` is empty after a command, whatever was printed."""

    dead: DeadRun
    ending: Ending
    end: RunEnd
    log: findings.Findings


def examine(runs: Runs, dead: DeadRun, swept: int = 0) -> Examined:
    """Find out how a run ended; ``swept``: processes that a keeper without an end record left, all gone by now."""
    ending = runs.ending(dead.worker, dead.run)
    lost = ending is None
    if ending is None:
        error = runs.stillborn(dead.worker, dead.run) or _unable(runs, dead)
        ending = _made_up(error=error, kind="prepare" if error else "", killed=swept, passing=bool(error))
    end = RunEnd(
        code=ending.code,
        signal=ending.signal,
        oom_kills=ending.oom_kills,
        oom_proven=ending.oom_proven,
        commanded=dead.commanded,
        phase=dead.phase,
        keeper_lost=lost and dead.keeper_code != END_UNWRITTEN,
        unwritten=lost and dead.keeper_code == END_UNWRITTEN,
        start_timed_out=dead.start_timed_out,
        hung=dead.hung,
        unready=dead.unready,
        swept=ending.descendants_killed > 0,
        ending=dead.ending,
    )
    return Examined(dead=dead, ending=ending, end=end, log=_read(dead, ending))


def _unable(runs: Runs, dead: DeadRun) -> str:
    """Why a keeper that ended by itself has neither started its worker nor told why; empty where it was another way."""
    if dead.main is not None or not dead.keeper_code or dead.keeper_code < 0:
        return ""
    directory = runs.directory(dead.worker, dead.run)
    return f"its keeper could not start it (exit code {dead.keeper_code}) and nothing could be written in {directory}"


def _read(dead: DeadRun, ending: Ending) -> findings.Findings:
    if dead.log is None:
        return nothing_found()
    if dead.commanded or ending.error:
        dead.log.close()
        return nothing_found()
    return dead.log.finish()


def judged(examined: Examined, moments: LastMoments) -> Findings:
    """Say why the run ended; ``moments``: what the host knew of its GPUs."""
    dead, ending = examined.dead, examined.ending
    if ending.error:
        refused = ending.error if ending.passing else ""
        return Findings(
            dead=dead, ending=ending, verdict=spawn_failed(ending.error, ending.error_kind), refused=refused
        )
    verdict = judge(examined.end, examined.log, moments)
    return Findings(dead=dead, ending=ending, verdict=verdict)


def never_started(worker: str, run: int, error: CannotLaunch) -> Findings:
    """A run that could not even be asked for."""
    dead = DeadRun(
        worker=worker, run=run, marker="", main=None, phase="starting", commanded=False, start_timed_out=False
    )
    return Findings(dead=dead, ending=_made_up(error=str(error)), verdict=spawn_failed(str(error), error.kind))


def _made_up(*, error: str = "", kind: str = "", killed: int = 0, passing: bool = False) -> Ending:
    """An end record for a run whose keeper wrote none."""
    return Ending(
        at=time.time(),
        at_s=None,
        code=None,
        signal=None,
        error=error,
        error_kind=kind,
        descendants_killed=killed,
        oom_kills=0,
        oom_proven=False,
        max_rss_bytes=0,
        log_lost_bytes=0,
        passing=passing,
    )
