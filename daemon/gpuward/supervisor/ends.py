"""Ends of runs: what their GPUs told before, the record that is kept of each, and the event that policy gets of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from gpuward.config.secrets import masked, secrets_in, secrets_of
from gpuward.host.crash_points import around
from gpuward.host.found_runs import started_from
from gpuward.host.records import VERSION, RunRecord
from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.diagnosis.gpu_evidence import NOTHING_KNOWN, LastMoments, with_late_xid
from gpuward.policy.fleet.step import FleetState
from gpuward.policy.gpus.health import XidSeen
from gpuward.policy.gpus.inventory import Gpu
from gpuward.policy.gpus.memory import claim_bytes
from gpuward.policy.reasons import WaitKind
from gpuward.policy.worker.life import Event, LadderStep, RunEnded, StartRefused, Worker
from gpuward.policy.worker.repeats import with_last
from gpuward.supervisor.equipment import Equipment
from gpuward.supervisor.postmortem import DeadRun, Findings
from gpuward.supervisor.traces import Span, Traces

OUTPUT_LOST = "output-lost"


class Ends:
    """For the loop's thread. ``notice`` gets a trouble's kind, reason and worker; no reason: it is over."""

    def __init__(
        self,
        equipment: Equipment,
        traces: Traces,
        fleet: Callable[[], FleetState],
        submit: Callable[[str, Event], None],
        notice: Callable[[str, str, str], None],
    ) -> None:
        self._equipment = equipment
        self._traces = traces
        self._fleet = fleet
        self._submit = submit
        self._notice = notice

    def moments(self, dead: DeadRun, ended_at: float) -> LastMoments:
        """What the GPUs of a run told before it ended."""
        state = self._fleet()
        worker = state.workers.get(dead.worker)
        if worker is None or worker.run != dead.run:
            return NOTHING_KNOWN
        return self._traces.last_moments(
            worker,
            self._claims(worker, worker.run),
            self._equipment.settings.xid,
            Span(ended_at, dead.stopped_at),
        )

    def take(self, findings: Findings) -> None:
        """Keep the record of a run, then tell policy. Its directory stays until the worker's next start."""
        findings = self._with_last(self._without_secrets(findings))
        dead, verdict, ending = findings.dead, findings.verdict, findings.ending
        if findings.refused:
            spent = self._equipment.log_path(dead.worker, dead.run).exists()
            kind: WaitKind = "lease" if ending.error_kind == "lease" else "spawn"
            self._submit(dead.worker, StartRefused(dead.run, findings.refused, kind=kind, spent=spent))
            return
        exit_ = LastExit(
            run=dead.run,
            cause=verdict.cause,
            code=ending.code,
            signal=ending.signal,
            at=ending.at,
            evidence=verdict.evidence,
            reason=verdict.reason,
            xids=verdict.xids,
            first_error=verdict.first_error,
            ended_by="hang" if dead.hung else dead.ending.kind if dead.ending is not None else "",
            by=dead.ending.by if dead.ending is not None and not dead.hung else None,
        )
        if ending.log_lost_bytes:
            reason = f"{ending.log_lost_bytes} bytes of the output of run {dead.run} of {dead.worker} were lost"
            self._notice(OUTPUT_LOST, f"{reason}: its log had no room", dead.worker)
        worker = self._fleet().workers.get(dead.worker)
        if worker is not None:
            self._keep(worker, exit_, findings)
        ended = RunEnded(
            run=dead.run,
            exit=exit_,
            permanent=verdict.permanent,
            reason=verdict.reason,
            hint=verdict.hint,
            offer_tokens=verdict.offer_tokens,
            jitter=random.random(),  # noqa: S311 - spreads restarts, keeps no secret
            ended_s=ending.at_s,
        )
        self._submit(dead.worker, ended)

    def _with_last(self, findings: Findings) -> Findings:
        worker = self._fleet().workers.get(findings.dead.worker)
        if worker is None:
            return findings
        verdict = with_last(findings.verdict, findings.dead.run, worker.last_exit)
        return replace(findings, verdict=verdict)

    def _without_secrets(self, findings: Findings) -> Findings:
        """What a run printed may hold what it was given in confidence; nothing of that is kept or shown."""
        dead, verdict = findings.dead, findings.verdict
        pool = started_from(self._equipment.runs, dead.worker, dead.run)
        secrets = secrets_in(self._equipment.context.inherited_env) | (secrets_of(pool) if pool else frozenset())
        if not secrets:
            return findings
        evidence = tuple(masked(line, secrets) for line in verdict.evidence)
        return replace(findings, verdict=replace(verdict, evidence=evidence, reason=masked(verdict.reason, secrets)))

    def hear(self, seen: XidSeen) -> list[tuple[str, LastExit]]:
        """Take an error of a GPU in; return whose last run it tells of, a little late, and that end anew."""
        self._traces.hear(seen)
        state = self._fleet()
        gpu = state.snapshot.gpu(seen.uuid)
        late: list[tuple[str, LastExit]] = []
        about = f"GPU {gpu.index if gpu is not None else seen.uuid}"
        for worker in state.workers.values():
            last = worker.last_exit
            if last is None or seen.uuid not in worker.run_uuids:
                continue
            amended = with_late_xid(last, seen, about, self._equipment.settings.xid)
            if amended is not last:
                self._write(worker.name, partial(self._equipment.records.amend_exit, worker.name, amended))
                late.append((worker.name, amended))
        return late

    def add_step(self, name: str, run: int, step: LadderStep) -> None:
        """Write down which setting was lowered after a run."""
        self._write(name, partial(self._equipment.records.add_step, name, run, step))

    def _keep(self, worker: Worker, exit_: LastExit, findings: Findings) -> None:
        claims = self._claims(worker, exit_.run)
        record = RunRecord(
            version=VERSION,
            run=exit_.run,
            exit=exit_,
            reason=findings.verdict.reason,
            hint=findings.verdict.hint,
            ran_s=_ran_s(worker, findings),
            descendants_killed=findings.ending.descendants_killed,
            max_rss_bytes=findings.ending.max_rss_bytes,
            log_lost_bytes=findings.ending.log_lost_bytes,
            gpu_uuids=worker.run_uuids,
            peak_bytes=self._traces.peaks(worker.name),
            claim_bytes={gpu.uuid: claim for gpu, claim in claims.items() if claim is not None},
            total_bytes={gpu.uuid: gpu.total_bytes for gpu in claims if gpu.total_bytes is not None},
            samples=self._traces.samples(worker.name),
        )
        keep = self._equipment.settings.limits.log_keep_runs
        self._write(worker.name, partial(self._equipment.records.add_run, worker.name, record, keep))

    def _claims(self, worker: Worker, run: int) -> dict[Gpu, int | None]:
        """What the run was to use of each of its GPUs, in bytes."""
        state = self._fleet()
        pool = started_from(self._equipment.runs, worker.name, run) or state.pool_of(worker)
        return {gpu: claim_bytes(pool, gpu) for gpu in state.snapshot.gpus if gpu.uuid in worker.run_uuids}

    def _write(self, name: str, write: Callable[[], None]) -> None:
        try:
            with around("save history"):
                write()
        except OSError as error:
            self._notice("history-not-saved", f"cannot save the history of {name}: {error.strerror}", name)


def _ran_s(worker: Worker, findings: Findings) -> float | None:
    """How long the run lived, by the keeper's clock where it told: the news of its end may be old."""
    ended_s = findings.ending.at_s if findings.ending.at_s is not None else time.monotonic()
    return ended_s - worker.started_s if worker.started_s is not None else None
