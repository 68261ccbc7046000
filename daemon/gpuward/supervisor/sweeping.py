"""The last of a run: what lives on after its main process or its keeper, waited for and told until it is gone.

A run has ended only when nothing of it lives. What no signal ends (state D, another user's process) is named by events,
so that the worker waits for it and does not start beside it. Decides nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping

from gpuward.host.leftovers import in_cgroup, orphans, still_alive, trees, who
from gpuward.host.live import LiveRun, sweep
from gpuward.host.processes import Identity, identify
from gpuward.policy.worker.life import Event, Lingers
from gpuward.supervisor.equipment import Equipment
from gpuward.supervisor.postmortem import DeadRun

LOOK_EVERY_S = 5.0
"""Pause between two looks at who belongs to the living runs."""

LINGERS_AFTER_S = 0.1
"""A keeper that is well has killed the rest of most trees by then; the news of the end itself follows."""

TOLD_AFTER_S = 0.5
AGAIN_S = 0.02
SLOWLY_AGAIN_S = 1.0
"""What a sweep has not ended is swept again after the first, and once it has been told, after the second."""


class Sweeping:
    """For the loop's thread. ``submit`` gets the events."""

    def __init__(self, equipment: Equipment, submit: Callable[[str, Event], None]) -> None:
        self._equipment = equipment
        self._submit = submit
        self._seen: dict[str, tuple[int, tuple[Identity, ...]]] = {}

    async def sweep(self, dead: DeadRun) -> int:
        """Kill what a lost keeper left until nothing is; return how many that were."""
        runs, killed, began_s = self._equipment.runs, set[int](), time.monotonic()
        known = {*runs.kept_tree(dead.worker, dead.run), *self._known(dead.worker, dead.run)}
        cgroup = runs.spec(dead.worker, dead.run).get("cgroup", [""])[0]
        quiet = 0
        while quiet < 2:  # what the last to die had below it has come to us only then
            left = await asyncio.to_thread(_swept, dead, known, cgroup, orphans(runs.root))
            if not left:
                quiet += 1
                continue
            quiet = 0
            killed.update(left)
            told = time.monotonic() > began_s + TOLD_AFTER_S
            if told:
                self._keep_for_the_next(dead, left)
                self._submit(dead.worker, Lingers(dead.run, await asyncio.to_thread(who, left)))
            await asyncio.sleep(SLOWLY_AGAIN_S if told else AGAIN_S)
        self._seen.pop(dead.worker, None)
        return len(killed)

    def _keep_for_the_next(self, dead: DeadRun, left: Iterable[int]) -> None:
        """Note who is left: orphans come to this process only, a daemon that follows it could not find them."""
        known = self._known(dead.worker, dead.run)
        living = {one for one in map(identify, left) if one is not None}
        members = (*known, *sorted(living - {*known}, key=lambda one: one.pid))
        if members != known:
            self._seen[dead.worker] = (dead.run, members)
            self._equipment.runs.keep_tree(dead.worker, dead.run, members)

    async def look_at(self, live: LiveRun, *, kill: bool) -> bool:
        """Tell what is left below a keeper whose run has no main process any more; return whether anything is."""
        live.wake_keeper()
        left = await asyncio.to_thread(live.rest, kill=kill)
        self._submit(live.worker, Lingers(live.run, left))
        return bool(left)

    async def look_around(self, living: Callable[[], Mapping[str, LiveRun]]) -> None:
        """Note who belongs to each living run, again and again: a keeper that is killed tells it no more."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            runs = {name: live for name, live in living().items() if live.keeper_pid is not None}
            below = await asyncio.to_thread(trees, [live.keeper_pid or 0 for live in runs.values()])
            for name, live in runs.items():
                members = below[live.keeper_pid or 0]
                if members and self._seen.get(name) != (live.run, members):
                    self._seen[name] = (live.run, members)
                    self._equipment.runs.keep_tree(name, live.run, members)

    def _known(self, worker: str, run: int) -> tuple[Identity, ...]:
        of_run, members = self._seen.get(worker, (0, ()))
        return members if of_run == run else ()


def _swept(dead: DeadRun, known: set[Identity], cgroup: str, orphaned: set[int]) -> tuple[int, ...]:
    return sweep(dead.marker, dead.main, {*still_alive(known), *in_cgroup(cgroup), *orphaned})
