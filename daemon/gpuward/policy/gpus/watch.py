"""Whether workers keep to their claims, told from samples: breach, growth, pressure; and what follows where asked for.

It judges only what it knows: never a stale or settling sample, never memory that the driver does not tell, and never
a process that is not ours. It explains an out-of-memory error rather than prevents it: no sampling beats an allocation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from gpuward.config.fleet import OnBreach
from gpuward.config.host import WatchSettings
from gpuward.policy.gpus.inventory import Gpu, Snapshot
from gpuward.policy.gpus.memory import gib

CLEARED_RATIO: Final = 0.01
"""A signal is over when memory is this share of the GPU's total on the right side of the limit, not at the limit."""

Key = tuple[str, str]
"""Worker name and GPU UUID."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What one ready worker has of one GPU in a sample; ``used_bytes`` None where not every process tells."""

    worker: str
    run: int
    uuid: str
    used_bytes: int | None
    claim_bytes: int | None
    on_breach: OnBreach


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Something that counts samples in a row and is then on, with a sentence, until it is over."""

    samples: int = 0
    sentence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What is remembered of one run on one GPU. ``first_bytes``: what it had when it was first seen ready.

    ``acts``: how often something was to be done about the breach that lasts.
    """

    run: int
    first_bytes: int
    over: Signal = field(default_factory=Signal)
    growth: Signal = field(default_factory=Signal)
    acts: int = 0


@dataclass(frozen=True, slots=True)
class Watch:
    """Everything that is remembered between samples. ``acted_at_s``: the last action per GPU, monotonic."""

    tallies: Mapping[Key, Tally] = field(default_factory=dict)
    pressure: Mapping[str, Signal] = field(default_factory=dict)
    acted_at_s: Mapping[str, float] = field(default_factory=dict)

    def of_workers(self) -> dict[str, list[str]]:
        """Return the sentences that are true now, by worker; of one that is not in it, none is."""
        found: dict[str, list[str]] = {}
        for (worker, _), tally in self.tallies.items():
            for signal in (tally.over, tally.growth):
                if signal.sentence:
                    found.setdefault(worker, []).append(signal.sentence)
        return found

    def of_gpu(self, uuid: str) -> tuple[str, ...]:
        """Return the sentences that are true of a GPU now."""
        signal = self.pressure.get(uuid)
        return (signal.sentence,) if signal is not None and signal.sentence else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """News for the journal; ``worker`` None where it is about a GPU alone."""

    kind: Literal["memory-breach", "memory-breach-over", "memory-growth", "gpu-pressure", "gpu-pressure-over"]
    gpu: int
    reason: str
    worker: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """A run that is to end because its pool says so; ``again``: it was to end for the same breach before."""

    worker: str
    run: int
    what: Literal["drain", "restart"]
    reason: str
    again: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """What follows from one sample."""

    watch: Watch
    notices: tuple[Notice, ...] = ()
    acts: tuple[Act, ...] = ()


def judge(watch: Watch, snapshot: Snapshot, uses: Iterable[Use], terms: WatchSettings, now_s: float) -> Judgement:
    """Look at one sample; ``uses`` are those of all ready workers, and only theirs."""
    uses = tuple(uses)
    keys = {(use.worker, use.uuid): use.run for use in uses}
    kept = {key: tally for key, tally in watch.tallies.items() if keys.get(key) == tally.run}
    watch = replace(watch, tallies=kept)
    notices: list[Notice] = []
    acts: list[Act] = []
    for gpu in snapshot.gpus if snapshot.state == "ok" else ():
        mine = [use for use in uses if use.uuid == gpu.uuid]
        if gpu.health != "ok" or gpu.settling or gpu.total_bytes is None or gpu.free_bytes is None:
            continue
        for use in mine:
            watch, news = _look(watch, gpu, use, terms)
            notices += news
            watch, act = _act(watch, gpu, use, terms, now_s)
            acts += act
        watch, news = _press(watch, gpu, mine, terms)
        notices += news
    return Judgement(watch, tuple(notices), tuple(acts))


def _look(watch: Watch, gpu: Gpu, use: Use, terms: WatchSettings) -> tuple[Watch, list[Notice]]:
    """Count one worker's memory on one GPU."""
    used, claim, total = use.used_bytes, use.claim_bytes, gpu.total_bytes
    if used is None or claim is None or total is None:
        return watch, []
    key = (use.worker, use.uuid)
    before = watch.tallies.get(key) or Tally(run=use.run, first_bytes=used)
    slack = max(terms.slack_bytes, int(terms.slack_ratio * total))
    cleared = int(CLEARED_RATIO * total)
    over = _count(
        before.over,
        on=used > claim + slack,
        off=used <= claim + slack - cleared,
        samples=terms.samples,
        sentence=f"{use.worker} holds {gib(used)} on GPU {gpu.index}: more than its claim of {gib(claim)} and "
        f"{gib(slack)} of slack",
    )
    grown = used - before.first_bytes
    growth = _count(
        before.growth,
        on=grown > terms.growth_bytes,
        off=grown <= terms.growth_bytes - cleared,
        samples=terms.samples,
        sentence=f"{use.worker} has grown by {gib(grown)} to {gib(used)} on GPU {gpu.index} since it was ready",
    )
    notices = _news(before.over, over, gpu, use.worker, ("memory-breach", "memory-breach-over"))
    if growth.sentence and not before.growth.sentence:
        notices.append(Notice(kind="memory-growth", gpu=gpu.index, worker=use.worker, reason=growth.sentence))
    counted = replace(before, over=over, growth=growth, acts=before.acts if over.sentence else 0)
    return replace(watch, tallies={**watch.tallies, key: counted}), notices


def _count(before: Signal, *, on: bool, off: bool, samples: int, sentence: str) -> Signal:
    """One more sample: on after so many in a row, off only where ``off`` says so; between the two nothing changes."""
    if before.sentence:
        return Signal() if off else Signal(samples=before.samples, sentence=sentence if on else before.sentence)
    if not on:
        return Signal()
    counted = before.samples + 1
    return Signal(samples=counted, sentence=sentence if counted >= samples else "")


def _news(
    before: Signal,
    after: Signal,
    gpu: Gpu,
    worker: str | None,
    kinds: tuple[
        Literal["memory-breach", "gpu-pressure"],
        Literal["memory-breach-over", "gpu-pressure-over"],
    ],
) -> list[Notice]:
    if after.sentence and not before.sentence:
        return [Notice(kind=kinds[0], gpu=gpu.index, worker=worker, reason=after.sentence)]
    if before.sentence and not after.sentence:
        return [Notice(kind=kinds[1], gpu=gpu.index, worker=worker, reason=f"no longer true: {before.sentence}")]
    return []


def _act(watch: Watch, gpu: Gpu, use: Use, terms: WatchSettings, now_s: float) -> tuple[Watch, list[Act]]:
    """Do what the pool says about a breach; on each GPU once per pause."""
    tally = watch.tallies.get((use.worker, use.uuid))
    if use.on_breach == "warn" or tally is None or not tally.over.sentence or use.used_bytes is None:
        return watch, []
    last_s = watch.acted_at_s.get(gpu.uuid)
    if last_s is not None and now_s - last_s < terms.action_pause_s:
        return watch, []
    reason = f'{tally.over.sentence}, on {tally.over.samples} samples in a row (on-breach is "{use.on_breach}")'
    watch = replace(
        watch,
        acted_at_s={**watch.acted_at_s, gpu.uuid: now_s},
        tallies={**watch.tallies, (use.worker, use.uuid): replace(tally, acts=tally.acts + 1)},
    )
    return watch, [Act(worker=use.worker, run=use.run, what=use.on_breach, reason=reason, again=tally.acts > 0)]


def _press(watch: Watch, gpu: Gpu, uses: list[Use], terms: WatchSettings) -> tuple[Watch, list[Notice]]:
    """A GPU that is nearly full although its workers keep to claims which leave room: somebody else's memory."""
    total, free = gpu.total_bytes or 0, gpu.free_bytes or 0
    claimed = sum(use.claim_bytes or 0 for use in uses)
    blamed = any(watch.tallies[key].over.samples for use in uses if (key := (use.worker, use.uuid)) in watch.tallies)
    meant = claimed >= total * (1 - terms.pressure_ratio)
    before = watch.pressure.get(gpu.uuid, Signal())
    holders = ", ".join(
        f"pid {process.pid} ({process.name or 'unknown'}, "
        f"{gib(process.used_bytes) if process.used_bytes is not None else 'unknown'})"
        for process in sorted(gpu.processes, key=lambda process: -(process.used_bytes or 0))[:3]
    )
    after = _count(
        before,
        on=bool(gpu.processes) and free < total * terms.pressure_ratio and not blamed and not meant,
        off=free >= total * (terms.pressure_ratio + CLEARED_RATIO) or blamed or meant,
        samples=terms.samples,
        sentence=f"GPU {gpu.index} has {gib(free)} of {gib(total)} free although its workers claim only "
        f"{gib(claimed)}; held by {holders}",
    )
    if after == before:
        return watch, []
    news = _news(before, after, gpu, None, ("gpu-pressure", "gpu-pressure-over"))
    return replace(watch, pressure={**watch.pressure, gpu.uuid: after}), news
