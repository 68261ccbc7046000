"""What follows from samples and errors of the GPUs, carried out: policy judges; this notes, keeps, and ends runs.

`policy.gpus.watch` judges memory, `policy.gpus.health` which GPUs are out of service, `policy.fleet.spare` who moves.
Runs on the
loop's thread. It decides nothing itself, and never touches a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, Literal

from gpuward.config.host import HostSettings
from gpuward.host.kernel_log import LoggedXid
from gpuward.host.processes import boot_id
from gpuward.host.records import VERSION, Records, StoredGpus
from gpuward.policy.fleet.preflight import would_not_return
from gpuward.policy.fleet.spare import spared
from gpuward.policy.fleet.step import settle
from gpuward.policy.gpus import health as policy
from gpuward.policy.gpus.health import Health, XidSeen
from gpuward.policy.gpus.inventory import Gpu, Snapshot
from gpuward.policy.gpus.memory import claim_bytes
from gpuward.policy.gpus.modes import barred_gpus
from gpuward.policy.gpus.watch import Use, Watch, judge
from gpuward.policy.reasons import By
from gpuward.policy.worker.life import Condemned, Phase
from gpuward.supervisor.loop import Supervisor

_NEXT: Final[Mapping[Literal["drain", "restart"], Literal["stop", "start"]]] = {"drain": "stop", "restart": "start"}
_INFORMS: Final = frozenset({"memory-breach-over", "gpu-pressure-over"})


class GpuCare:
    """Watches the workers' memory and the health of the GPUs."""

    def __init__(self, supervisor: Supervisor, records: Records, settings: HostSettings) -> None:
        self.watch = Watch()
        self.health = records.load_gpus().health
        self._supervisor = supervisor
        self._records = records
        self._settings = settings

    def observe(self, snapshot: Snapshot) -> None:
        """Take a sample in, after the supervisor has."""
        self._take(policy.looked(self.health, snapshot, time.time(), boot_id()))
        judgement = judge(self.watch, snapshot, self._uses(snapshot), self._settings.watch, time.monotonic())
        self.watch = judgement.watch
        for notice in judgement.notices:
            level = "info" if notice.kind in _INFORMS else "warning"
            self._supervisor.journal.note(notice.kind, notice.reason, worker=notice.worker, gpu=notice.gpu, level=level)
        for act in judgement.acts:
            state, worker = self._supervisor.state, self._supervisor.state.workers[act.worker]
            kept = would_not_return(state, worker, state.pools[worker.pool]) if act.what == "restart" else None
            if kept is not None and act.again:
                continue
            if kept is not None:
                reason = f"{act.reason}; not restarted: {kept}"
                self._supervisor.journal.note("memory-breach-kept", reason, worker=act.worker, level="warning")
                continue
            self._supervisor.submit(act.worker, Condemned(act.run, _NEXT[act.what], act.reason, again=act.again))

    def xid(self, seen: XidSeen) -> None:
        """Take an error in that the driver has reported."""
        gpu = self._snapshot.gpu(seen.uuid)
        self._supervisor.heard(seen)
        self._take(policy.xid_seen(self.health, seen, self._settings.xid, gpu, boot_id()))

    def catch_up(self, logged: Iterable[LoggedXid]) -> None:
        """Take in what the kernel's log has: errors from before this daemon listened."""
        snapshot = self._snapshot
        missed = [
            XidSeen(uuid=gpu.uuid, code=one.code, at=one.at)
            for one in logged
            for gpu in snapshot.gpus
            if one.is_of(gpu.pci_bus_id)
        ]
        for seen in missed:
            self._supervisor.heard(seen)
        self._take(policy.xids_missed(self.health, missed, self._settings.xid, snapshot, boot_id()))

    def xid_on(self, gpu: Gpu, code: int) -> None:
        """Take an error in that is simulated."""
        self.xid(XidSeen(uuid=gpu.uuid, code=code, at=time.time()))

    def command(self, verb: Literal["cordon", "uncordon", "clear"], gpu: Gpu, reason: str, by: By | None) -> None:
        """Do what the operator says about a GPU. Raises NotPossible, and OSError where it cannot be kept."""
        match verb:
            case "cordon":
                outcome = policy.cordoned(self.health, gpu, reason, by)
            case "uncordon":
                outcome = policy.uncordoned(self.health, gpu, reason, by)
            case "clear":
                outcome = policy.cleared(self.health, gpu, reason, time.time(), by)
        self._save(outcome[0])
        self._take(outcome)

    def tell(self, kind: str, reason: str, by: By | None) -> None:
        """Note what was done about the GPUs by command."""
        self._supervisor.journal.note(kind, reason, by=by)

    @property
    def _snapshot(self) -> Snapshot:
        return self._supervisor.state.snapshot

    def _take(self, outcome: policy.Outcome) -> None:
        """Keep what changed, tell it, and see to the workers on GPUs that are out of service."""
        before, (self.health, notes) = self.health, outcome
        if notes and self.health != before:
            try:
                self._save(self.health)
            except OSError as error:
                self._supervisor.journal.note("state-not-saved", f"cannot save gpus.json: {error.strerror}")
        for note in notes:
            gpu = self._snapshot.gpu(note.uuid)
            index, level = gpu.index if gpu else None, "warning" if note.warns else "info"
            self._supervisor.journal.note(note.kind, note.reason, gpu=index, level=level, by=note.by)
        closed = barred_gpus(self._snapshot) | self.health.closed(self._snapshot)
        if closed != self._supervisor.state.closed:
            self._supervisor.command(lambda state, now_s: settle(replace(state, closed=closed), now_s))
        if self.health.quarantines and self._snapshot.state == "ok":
            bad = {uuid: closed[uuid] for uuid in self.health.quarantines}
            excluded = self._settings.inventory.exclude
            self._supervisor.command(lambda state, now_s: spared(state, bad, excluded, now_s))

    def _save(self, health: Health) -> None:
        self._records.save_gpus(StoredGpus(version=VERSION, health=health))

    def _uses(self, snapshot: Snapshot) -> Iterator[Use]:
        """What ready workers have, as far as the sample is younger than their readiness."""
        state, attribution = self._supervisor.state, self._supervisor.attribution
        for worker in state.workers.values():
            if worker.phase is not Phase.READY or snapshot.taken_at_s < (worker.ready_since_s or 0.0):
                continue
            pool = state.pool_of(worker)
            used = attribution.used_bytes.get(worker.name, {})
            for uuid in worker.run_uuids:
                gpu = snapshot.gpu(uuid)
                yield Use(
                    worker=worker.name,
                    run=worker.run,
                    uuid=uuid,
                    used_bytes=None if (worker.name, uuid) in attribution.untold else used.get(uuid, 0),
                    claim_bytes=claim_bytes(pool, gpu) if gpu is not None else None,
                    on_breach=pool.on_breach,
                )
