"""What was written and what happened: documents of a worker's logs and of the events. Reads; changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpuward.control import requests as ask
from gpuward.control.server import Refusal
from gpuward.host import logs
from gpuward.host.records import Records
from gpuward.host.runs import Runs
from gpuward.policy.worker.life import Worker
from gpuward.supervisor.journal import Journal

Document = dict[str, Any]
LINES_DEFAULT = 100


def log_document(directory: Path, worker: Worker, args: ask.LogsArgs, lost: Callable[[int], str]) -> Document:
    """Return a part of a run's log, of the newest run where none is named; ``directory`` has the worker's logs.

    ``lost`` tells what of the output of a run is not in its log.
    """
    run = args.run if args.run is not None else worker.run
    path = directory / f"{run}.log"
    if args.offset is None and run != worker.run and not path.exists():
        kept = sorted(int(one.stem) for one in directory.glob("*.log") if one.stem.isdecimal())
        runs = f"kept are those of runs {', '.join(map(str, kept))}" if kept else "none is kept"
        missing = f"; {lost(run)}" if lost(run) else ""
        raise Refusal("no-such-worker", f"there is no log of run {run} of {worker.name}; {runs}{missing}")
    if args.offset is not None:
        offset = args.offset if args.offset >= 0 else logs.size(path)
        chunk = logs.read_from(path, offset, args.max_bytes)
    else:
        chunk = logs.tail(path, args.lines if args.lines is not None else LINES_DEFAULT, args.max_bytes)
    return {
        "worker": worker.name,
        "run": run,
        "text": chunk.text,
        "offset": chunk.offset,
        "next_offset": chunk.next_offset,
        "size": chunk.size,
        "ended": not (worker.alive and worker.run == run),
        "lost": lost(run),
    }


def lost_output(runs: Runs, records: Records, worker: str, run: int) -> str:
    """What of a run's output is lost, in a sentence; empty where nothing is."""
    trouble = runs.log_trouble(worker, run)
    ended = sum(record.log_lost_bytes for record in records.history(worker) if record.run == run)
    if not (trouble or ended):
        return ""
    return f"{ended or 'some'} bytes of the output of run {run} of {worker} were lost ({trouble or 'no room'})"


def events_document(journal: Journal, args: ask.EventsArgs) -> Document:
    """Return the last events, or those from a sequence number on; of one worker or pool where it is named."""
    chosen = journal.since(args.since - 1 if args.since is not None else 0)
    if args.worker is not None:
        chosen = [event for event in chosen if _concerns(event["worker"], args.worker)]
    chosen = chosen[: args.limit] if args.since is not None else chosen[-args.limit :]
    next_seq = chosen[-1]["seq"] + 1 if chosen and args.since is not None else journal.seq + 1
    return {"epoch": journal.epoch, "first_seq": journal.first_seq, "next_seq": next_seq, "events": chosen}


def _concerns(worker: str | None, name: str) -> bool:
    """Whether an event's worker is the one named, or of the pool named."""
    return worker is not None and name in {worker, worker.rpartition("/")[0]}
