"""What follows from samples of the GPUs, carried out: `policy.watch` judges; this notes the news and ends runs.

Runs on the loop's thread. It decides nothing itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Final, Literal

from gpuward.config.host import WatchSettings
from gpuward.policy.inventory import Snapshot
from gpuward.policy.life import Condemned, Phase
from gpuward.policy.memory import claim_bytes
from gpuward.policy.watch import Use, Watch, judge
from gpuward.supervisor import Supervisor

_NEXT: Final[Mapping[Literal["drain", "restart"], Literal["stop", "start"]]] = {"drain": "stop", "restart": "start"}
_INFORMS: Final = frozenset({"memory-breach-over", "gpu-pressure-over"})


class GpuCare:
    """Watches the workers' memory."""

    def __init__(self, supervisor: Supervisor, terms: WatchSettings) -> None:
        self.watch = Watch()
        self._supervisor = supervisor
        self._terms = terms

    def observe(self, snapshot: Snapshot) -> None:
        """Take a sample in, after the supervisor has."""
        judgement = judge(self.watch, snapshot, self._uses(snapshot), self._terms, time.monotonic())
        self.watch = judgement.watch
        for notice in judgement.notices:
            level = "info" if notice.kind in _INFORMS else "warning"
            self._supervisor.journal.note(notice.kind, notice.reason, worker=notice.worker, gpu=notice.gpu, level=level)
        for act in judgement.acts:
            self._supervisor.submit(act.worker, Condemned(act.run, _NEXT[act.what], act.reason))

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
