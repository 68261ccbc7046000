"""One living run as the daemon sees it: its keeper watched by pidfd, its main process signalled by pidfd.

Child or not makes no difference: a run adopted from an earlier daemon is the same as one started by this. Decides
nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from gpuward.host.leftovers import who
from gpuward.host.processes import Identity, find_marked, identify, in_session, open_pidfd, same, state_of, tree
from gpuward.host.runs import Runs, Spawned
from gpuward.policy.worker.lingering import Left


class LiveRun:
    """Handle of a run whose keeper is alive. What it is given to call is called on the loop, once each.

    ``on_main_ended``: the main process is dead; the run ends when the keeper does, which may be never.
    """

    def __init__(
        self,
        runs: Runs,
        worker: str,
        run: int,
        *,
        on_started: Callable[[], None],
        on_main_ended: Callable[[], None],
        on_ended: Callable[[], None],
    ) -> None:
        self.worker = worker
        self.run = run
        self.directory: Path = runs.directory(worker, run)
        self.keeper: Identity | None = None
        self.main: Identity | None = None
        self._runs = runs
        self._on_started = on_started
        self._on_main_ended = on_main_ended
        self._on_ended = on_ended
        self._keeper_fd = -1
        self._main_fd = -1
        self._started_fd = -1
        self._terminating = False
        self._loop = asyncio.get_running_loop()

    def follow(self, spawned: Spawned) -> None:
        """Watch a keeper that was just started (our child, so its pid cannot be anybody else's yet)."""
        self._started_fd = spawned.started_fd  # first: from here on `close` closes it, whatever fails
        self.keeper = identify(spawned.keeper_pid)
        self._keeper_fd = os.pidfd_open(spawned.keeper_pid)
        self._loop.add_reader(self._started_fd, self._started)
        self._loop.add_reader(self._keeper_fd, self._ended)

    def adopt(self, keeper: Identity) -> bool:
        """Watch a keeper that another daemon started; False where it is gone."""
        fd = open_pidfd(keeper)
        if fd is None:
            return False
        self.keeper = keeper
        self._keeper_fd = fd
        self._loop.add_reader(fd, self._ended)
        self._look_for_main()
        return True

    @property
    def main_pid(self) -> int | None:
        """Pid of the worker's main process; None before it is started."""
        return self.main.pid if self.main else None

    @property
    def keeper_pid(self) -> int | None:
        """Pid of the keeper."""
        return self.keeper.pid if self.keeper else None

    def tree(self) -> tuple[int, ...]:
        """Every process below the keeper: the worker's main process first, if it lives."""
        return tree(self.keeper.pid) if self.keeper and same(self.keeper) else ()

    def terminate(self) -> None:
        """SIGTERM to the main process, and SIGCONT: a stopped process would not see it (s6 does the same).

        A main process that does not exist yet gets it as soon as it does. A run gets one SIGTERM, whichever daemon sent
        it: at the second vLLM drops the requests that it was asked to finish.
        """
        self._terminating = True
        self._look_for_main()
        if self._main_fd >= 0 and self._runs.note_terminated(self.worker, self.run):
            self._signal_main(signal.SIGTERM)
        self._signal_main(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to the main process; the keeper kills the rest. Before the main process exists, to the keeper."""
        if not self._signal_main(signal.SIGKILL) and self.main is None:
            self.kill_keeper()

    def wake_keeper(self) -> None:
        """SIGCONT: a keeper that somebody has stopped kills and tells nothing."""
        with suppress(OSError):
            signal.pidfd_send_signal(self._keeper_fd, signal.SIGCONT)

    def kill_keeper(self) -> None:
        """SIGKILL to the keeper; what is left of the tree is swept when its end is noticed."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._keeper_fd, signal.SIGKILL)

    def rest(self, *, kill: bool) -> tuple[Left, ...]:
        """Who of the tree lives, for a thread; SIGKILL to them first where the keeper alone has not ended them."""
        pids = self.tree()
        for pid in pids if kill else ():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        return who(pids)

    def close(self) -> None:
        """Stop watching; the run goes on."""
        for fd in (self._started_fd, self._keeper_fd, self._main_fd):
            if fd >= 0:
                self._loop.remove_reader(fd)
        for fd in (self._started_fd, self._keeper_fd, self._main_fd):
            if fd >= 0:
                os.close(fd)
        self._started_fd = self._keeper_fd = self._main_fd = -1

    def _signal_main(self, number: signal.Signals) -> bool:
        self._look_for_main()
        if self._main_fd < 0:
            return False
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._main_fd, number)
        return True

    def _look_for_main(self) -> None:
        if self.main is not None:
            return
        self.main = self._runs.main_identity(self.worker, self.run)
        fd = open_pidfd(self.main) if self.main else None
        if fd is not None:
            self._main_fd = fd
            self._loop.add_reader(fd, self._main_ended)
        elif self.main is not None:
            self._loop.call_soon(self._on_main_ended)

    def _main_ended(self) -> None:
        self._loop.remove_reader(self._main_fd)
        self._on_main_ended()

    def _started(self) -> None:
        self._loop.remove_reader(self._started_fd)
        os.close(self._started_fd)
        self._started_fd = -1
        self._look_for_main()
        if self._terminating:
            self.terminate()
        else:
            self._on_started()

    def _ended(self) -> None:
        self._loop.remove_reader(self._keeper_fd)
        self._on_ended()


def sweep(marker: str, main: Identity | None, others: Iterable[int] = ()) -> tuple[int, ...]:
    """SIGKILL what a lost keeper left: its session, what carries its marker, and ``others``. Returns the pids.

    Called until it returns nothing: a killed process may have had children that were not marked yet. Zombies are dead.
    """
    if not marker:
        raise ValueError("a sweep without a marker would hit every process")
    found = {*find_marked(marker.encode()), *others}
    if main is not None and identify(main.pid) in {None, main}:
        # While a session has members the kernel gives its number to nobody else; a leader of another start time is.
        found |= set(in_session(main.pid))
    found = {pid for pid in found if pid != os.getpid() and state_of(pid) not in {"", "Z", "X"}}
    for pid in found:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return tuple(sorted(found))
