"""Documents for the control socket, from the supervisor's state. They show; they decide nothing and change nothing."""

from __future__ import annotations

import os
import time
from typing import Any, NamedTuple

from gpuward import __version__
from gpuward.api.gpu_views import gpu_document, workers_by_gpu
from gpuward.api.run_views import last_exit_document, run_document, sentences
from gpuward.control.protocol import SCHEMA_VERSION
from gpuward.host.records import RunRecord
from gpuward.interop.fleet_toml import fix
from gpuward.policy.fleet.changes import Change
from gpuward.policy.fleet.operations import Operation
from gpuward.policy.fleet.under_way import under_way
from gpuward.policy.gpus.inventory import Gpu
from gpuward.policy.gpus.memory import claim_bytes
from gpuward.policy.placement.plan import Plan
from gpuward.policy.worker.ladder import said
from gpuward.policy.worker.life import Phase, Worker
from gpuward.policy.worker.phases import at_present
from gpuward.supervisor.applied_fleet import Fleets
from gpuward.supervisor.ends import OUTPUT_LOST
from gpuward.supervisor.gpu_care import GpuCare
from gpuward.supervisor.handles import Handle
from gpuward.supervisor.journal import rfc3339
from gpuward.supervisor.loop import Supervisor
from gpuward.supervisor.planning import Proposal

Document = dict[str, Any]


class Moment(NamedTuple):
    """What all workers of one answer are seen by: GPUs by UUID, sentences of the watch by worker, monotonic time."""

    by_uuid: dict[str, Gpu]
    warnings: dict[str, list[str]]
    now_s: float


class Views:
    """What the daemon tells of itself."""

    def __init__(self, supervisor: Supervisor, fleets: Fleets, care: GpuCare, started_s: float) -> None:
        self._supervisor = supervisor
        self._fleets = fleets
        self._care = care
        self._started_s = started_s

    def daemon(self) -> Document:
        """This life of the daemon."""
        return {
            "pid": os.getpid(),
            "version": __version__,
            "epoch": self._supervisor.journal.epoch,
            "uptime_s": round(time.monotonic() - self._started_s, 3),
            "notices": list(self._supervisor.notices.values()),
        }

    def status(self) -> Document:
        """The document of ``gpuctl status -o json``."""
        state = self._supervisor.state
        moment = self._moment()
        return {
            "schema_version": SCHEMA_VERSION,
            "simulated": state.snapshot.simulated,
            "daemon": self.daemon(),
            "fleet": self.fleet(),
            "inventory": {
                "state": state.snapshot.state,
                "reason": state.snapshot.reason,
                "sampled_at": rfc3339(time.time() - moment.now_s + state.snapshot.taken_at_s),
            },
            "workers": [self.worker(worker, moment) for worker in state.workers.values()],
            "gpus": self._gpus(),
        }

    def fleet(self) -> Document:
        """Which fleet is applied, and whether the file of the start says otherwise."""
        self._fleets.look_again()
        drift = self._fleets.drift_reason
        return {
            "revision": self._fleets.revision,
            "source": self._fleets.stored.source if self._fleets.stored else None,
            "drift": drift is not None,
            "drift_reason": drift,
            "drift_advice": self._fleets.drift_advice,
        }

    def _moment(self) -> Moment:
        gpus = self._supervisor.state.snapshot.gpus
        return Moment({gpu.uuid: gpu for gpu in gpus}, self._care.watch.of_workers(), time.monotonic())

    def worker(self, worker: Worker, moment: Moment | None = None) -> Document:
        """One worker."""
        by_uuid, warnings, now_s = moment if moment is not None else self._moment()
        handle = self._supervisor.runner.handles.get(worker.name)
        alive = worker.alive
        uuids = worker.run_uuids if alive else worker.device_uuids
        started_s = worker.started_s if alive else None
        return {
            "name": worker.name,
            "pool": worker.pool,
            "phase": worker.phase,
            "goal": worker.goal,
            "ready": worker.phase is Phase.READY,
            "reason": at_present(worker, now_s),
            "by": worker.by.user if worker.by is not None else None,
            "gpus": [by_uuid[uuid].index for uuid in uuids if uuid in by_uuid],
            "gpu_uuids": list(uuids),
            "pid": handle.live.main_pid if handle is not None else None,
            "keeper_pid": handle.live.keeper_pid if handle is not None else None,
            "run": worker.run,
            "port": worker.port,
            "restarts": worker.restarts,
            "adapted": [said(step) for step in worker.steps],
            "uptime_s": round(now_s - started_s, 3) if started_s is not None else None,
            "memory": self._memory(worker, uuids, by_uuid) if uuids else [],
            "warnings": warnings.get(worker.name, []),
            "liveness": _liveness(worker, handle),
            "last_exit": last_exit_document(worker.last_exit) if worker.last_exit is not None else None,
            "next_start_at": _next_start_at(worker, now_s),
        }

    def _with_steps(self, change: Change) -> str:
        """The reason of a change, with what the worker has less of than its pool asks for."""
        worker = self._supervisor.state.workers.get(change.worker)
        steps = ", ".join(said(step) for step in worker.steps) if worker is not None else ""
        return f"{change.reason}; at present it has {steps}" if steps else change.reason

    def _memory(self, worker: Worker, uuids: tuple[str, ...], by_uuid: dict[str, Gpu]) -> list[Document]:
        used = self._supervisor.attribution.used_bytes.get(worker.name, {})
        untold = self._supervisor.attribution.untold
        pool = self._supervisor.state.pool_of(worker)
        return [
            {
                "gpu_uuid": uuid,
                "used_bytes": used.get(uuid, 0)
                if (worker.name, uuid) not in untold and _tells(by_uuid.get(uuid))
                else None,
                "claim_bytes": claim_bytes(pool, by_uuid[uuid]) if uuid in by_uuid else None,
            }
            for uuid in uuids
        ]

    def _gpus(self) -> list[Document]:
        state = self._supervisor.state
        workers = workers_by_gpu(state)
        return [gpu_document(state, self._care, gpu, workers.get(gpu.uuid, ())) for gpu in state.snapshot.gpus]

    def gpu(self, gpu: Gpu) -> Document:
        """One GPU."""
        state = self._supervisor.state
        return gpu_document(state, self._care, gpu, workers_by_gpu(state).get(gpu.uuid, ()))

    def why(self, worker: Worker, runs: list[RunRecord]) -> Document:
        """What a worker is doing, why, since when, what follows; and its ended runs, newest first."""
        indices = {gpu.uuid: gpu.index for gpu in self._supervisor.state.snapshot.gpus}
        return {
            "schema_version": SCHEMA_VERSION,
            "worker": self.worker(worker),
            "sentences": [*sentences(worker, time.monotonic()), *self._around(worker)],
            "fix": fix(self._supervisor.state.pools[worker.pool], worker.steps),
            "runs": [run_document(record, indices) for record in runs],
        }

    def _around(self, worker: Worker) -> list[str]:
        """What concerns a worker without being of its own life: its GPUs, its memory, commands and rolls under way."""
        state = self._supervisor.state
        operations = self._supervisor.operations.by_id.values()
        uuids = worker.run_uuids if worker.alive else worker.device_uuids
        closed = [
            f"{state.closed[uuid]}." for uuid in uuids if uuid in state.closed and worker.phase is not Phase.BLOCKED
        ]
        told = [f"{warning}." for warning in self._care.watch.of_workers().get(worker.name, [])]
        lost = self._supervisor.notices.get(f"{OUTPUT_LOST} {worker.name}")
        told += [f"{lost}."] if lost is not None else []
        return [*closed, *told, *self._watching(worker), *under_way(worker, operations, state.rolls.get(worker.pool))]

    def _watching(self, worker: Worker) -> list[str]:
        """Where not every hang of a ready worker would be found: why."""
        handle = self._supervisor.runner.handles.get(worker.name)
        report = handle.liveness if handle is not None and worker.phase is Phase.READY else None
        return [f"Liveness: {report.reason}."] if report is not None and report.state in {"partly", "asleep"} else []

    def proposal(self, proposal: Proposal) -> Document:
        """A planned fleet against what runs."""
        return {
            "schema_version": SCHEMA_VERSION,
            "revision": self._fleets.revision,
            "plan": plan_document(proposal.plan),
            "changes": [
                {
                    "worker": change.worker,
                    "pool": change.pool,
                    "action": change.action,
                    "keys": list(change.keys),
                    "differences": [
                        {"key": one.key, "before": one.before, "after": one.after} for one in change.differences
                    ],
                    "left": change.left,
                    "reason": self._with_steps(change),
                }
                for change in proposal.changes
            ],
        }


def _liveness(worker: Worker, handle: Handle | None) -> Document | None:
    """How well a ready worker is watched; None before the first look."""
    report = handle.liveness if handle is not None and worker.phase is Phase.READY else None
    return {"state": report.state, "reason": report.reason} if report is not None else None


def plan_document(plan: Plan) -> Document:
    """The document of ``gpuctl plan -o json``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "ok": plan.ok,
        "workers": [
            {
                "name": worker.name,
                "pool": worker.pool,
                "gpus": list(worker.gpus),
                "gpu_uuids": list(worker.gpu_uuids),
                "claim_bytes": worker.claim_bytes,
            }
            for worker in plan.workers
        ],
        "problems": [{"code": one.code, "pool": one.pool, "message": one.message} for one in plan.problems],
        "warnings": [{"code": one.code, "pool": one.pool, "message": one.message} for one in plan.warnings],
        "gpus_needed": plan.gpus_needed,
        "gpus_available": plan.gpus_available,
    }


def operation_document(operation: Operation) -> Document:
    """A command under way."""
    return {
        "id": operation.id,
        "verb": operation.verb,
        "state": operation.state,
        "version": operation.version,
        "workers": [
            {
                "name": target.name,
                "state": target.state,
                "phase": target.phase,
                "reason": target.reason,
                "evidence": list(target.evidence),
                "refused": target.refused,
            }
            for target in operation.targets
        ],
    }


def _tells(gpu: Gpu | None) -> bool:
    """Whether a GPU tells what is on it: of one that is lost nothing is known, which is not 0 bytes."""
    return gpu is not None and gpu.health == "ok"


def _next_start_at(worker: Worker, now_s: float) -> str | None:
    waits = worker.not_before_s > now_s and worker.phase in {Phase.BACKOFF, Phase.RELEASING}
    return rfc3339(time.time() + worker.not_before_s - now_s) if waits else None
