"""The runs that an earlier daemon left, as their directories and their keepers' locks tell them. Reads only."""

from __future__ import annotations

import msgspec

from gpuward.config.fleet import Fleet, Pool
from gpuward.host.files import RUN_FILE_MAX_BYTES, read_regular
from gpuward.host.processes import boot_id
from gpuward.host.runs import Runs, pairs_of
from gpuward.host.sense import absurd_fleet, absurd_number, worker_named
from gpuward.policy.fleet.resume import FoundRun


def found_runs(runs: Runs) -> list[FoundRun]:
    """The newest run of every worker that has a directory; of directories of an earlier boot none."""
    newest: dict[str, int] = {}
    for path in runs.root.glob("*/*/*/spec"):
        pool, index, run = path.parts[-4:-1]
        worker = worker_named(pool, index)
        if worker is not None and run.isascii() and run.isdecimal():
            newest[worker] = max(newest.get(worker, 0), int(run))
    found = (_found(runs, worker, run) for worker, run in sorted(newest.items()))
    return [one for one in found if one is not None]


def _found(runs: Runs, worker: str, run: int) -> FoundRun | None:
    spec = runs.spec(worker, run)
    kept = runs.is_kept(worker)
    if not kept and spec.get("boot_id") != [boot_id()]:
        return None
    port = spec.get("port", [""])[0]
    started = pairs_of(runs.directory(worker, run) / "started")
    return FoundRun(
        worker=worker,
        run=run,
        kept=kept,
        pool=started_from(runs, worker, run),
        definition=spec.get("definition", [""])[0],
        gpu_uuids=tuple(spec.get("gpu", [])),
        port=int(port) if port.isdecimal() else None,
        started_s=_number(started.get("monotonic", [""])[0]),
    )


def started_from(runs: Runs, worker: str, run: int) -> Pool | None:
    """The pool that a run was started from, with the steps of its ladder; None where its directory does not tell."""
    try:
        content = read_regular(runs.directory(worker, run) / "pool", RUN_FILE_MAX_BYTES)
        pool = msgspec.json.decode(content, type=Pool)
        strange = absurd_number(pool) or absurd_fleet(Fleet(pools=(pool,))) or pool.name != worker.rpartition("/")[0]
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if strange else pool


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
