"""One life of the daemon: take over what runs, answer, turn, and end in order. Signals and systemd are its business."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from typing import Any, Protocol

from structlog.typing import FilteringBoundLogger

from gpuward import __version__
from gpuward.control.protocol import DEFAULT_SOCKET
from gpuward.control.requests import Request
from gpuward.control.roles import Peer
from gpuward.control.server import Refusal, Server
from gpuward.host.daemon_log import LogTarget
from gpuward.host.kernel_log import logged_xids
from gpuward.host.notify import Notify
from gpuward.host.own_process import become_subreaper, has_terminal
from gpuward.host.runtime_directory import RuntimeDirectory
from gpuward.host.unit_job import pending_job
from gpuward.policy.fleet import step as policy
from gpuward.policy.gpus.inventory import Snapshot
from gpuward.policy.placement.ports import PortsExhausted
from gpuward.policy.reasons import By
from gpuward.policy.worker.grace import longest_stop_s
from gpuward.policy.worker.life import Goal, Phase
from gpuward.supervisor.applied_fleet import Fleets
from gpuward.supervisor.departure import Departure
from gpuward.supervisor.equipment import Equipment
from gpuward.supervisor.gpu_care import GpuCare
from gpuward.supervisor.lookout import Lookout
from gpuward.supervisor.loop import Supervisor
from gpuward.supervisor.planning import decoded, read_fleet_file, unreadable
from gpuward.supervisor.takeover import Takeover

ANSWER_LEAVES_S = 0.1
"""Pause between the decision to leave and the end of the sockets: the answer to who asked for it goes first."""


SIGHUP = By(uid=None, user="SIGHUP")
"""Who sent a signal is not known."""


class CannotRun(Exception):
    """The daemon cannot start; ``permanent`` where only a changed configuration helps."""

    def __init__(self, message: str, *, permanent: bool) -> None:
        super().__init__(message)
        self.permanent = permanent


class Face(Protocol):
    """What answers requests; ``open``: whether it takes commands."""

    open: bool

    async def dispatch(self, request: Request, peer: Peer) -> dict[str, Any]:
        """Answer one request, or raise Refusal."""

    def reload(self, *, by: By | None) -> dict[str, Any]:
        """Apply the file of the start, or raise Refusal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What one life of the daemon consists of."""

    equipment: Equipment
    supervisor: Supervisor
    fleets: Fleets
    care: GpuCare
    commands: Face


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is there before any part: where the log goes, who listens, and how a life may end early."""

    log: FilteringBoundLogger
    log_target: LogTarget
    notify: Notify
    server: Server
    runtime: RuntimeDirectory
    departure: Departure


class Daemon:
    """Runs until it is told to stop (every worker is down then) or to depart (they keep running)."""

    def __init__(self, parts: Parts, around: Surroundings, *, simulate: str | None, sample_within_s: float) -> None:
        self._parts = parts
        self._notify = around.notify
        self._server = around.server
        self._departure = around.departure
        self._takeover = Takeover(parts.equipment, parts.supervisor, parts.fleets)
        self._lookout = Lookout(parts.equipment, parts.supervisor, around.server, around.log_target)
        self._had_terminal = has_terminal()
        self._simulate = simulate
        self._sample_within_s = sample_within_s
        self._first_sample = asyncio.Event()
        self._stops = 0
        self._waiting_for_inventory = False

    async def live(self) -> None:
        """Take over, run, end."""
        parts, loop = self._parts, asyncio.get_running_loop()
        failed: asyncio.Future[None] = loop.create_future()
        loop.set_exception_handler(lambda _, context: _fail(failed, context))
        self._handle_signals(loop)
        become_subreaper()
        parts.equipment.reaper.reap()  # of the program that this process was before `gpuctl daemon reexec`
        parts.equipment.sampler.start(loop, self._observe)
        if parts.equipment.xids is not None:
            parts.equipment.xids.start(loop, parts.care.xid)
        serving = asyncio.create_task(self._server.serve(parts.commands.dispatch))
        try:
            await self._begin(self._server.path)
            if parts.supervisor.state.halting:  # asked to stop before the workers that ran were known
                parts.supervisor.command(policy.halt)
            await self._until_done(serving, failed)
        finally:
            serving.cancel()
            parts.supervisor.runner.close()
            parts.equipment.sampler.stop()
            if parts.equipment.xids is not None:
                parts.equipment.xids.stop()

    async def _until_done(self, serving: asyncio.Task[None], failed: asyncio.Future[None]) -> None:
        turning = asyncio.create_task(self._parts.supervisor.run(self._on_turn))
        departed = asyncio.create_task(self._depart())
        watched: set[asyncio.Future[Any]] = {serving, turning, failed, departed}
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        for done in (failed, serving, turning):
            if done.done():
                done.result()
        reason = "the workers keep running" if departed.done() else "every worker is down"
        self._parts.supervisor.journal.log.info("stopped", reason=reason)
        turning.cancel()
        departed.cancel()

    def _observe(self, snapshot: Snapshot) -> None:
        """Take a sample of the GPUs in."""
        self._parts.supervisor.observe(snapshot)
        self._parts.care.observe(snapshot)
        self._first_sample.set()
        if snapshot.state != "ok" or not self._parts.commands.open:
            return
        if self._waiting_for_inventory:
            self._waiting_for_inventory = False
            self._apply_first()
        if not self._takeover.settled:
            self._takeover.settle()

    async def _catch_up(self) -> None:
        """Learn from the kernel's log which errors of the GPUs nobody heard."""
        if self._parts.equipment.xids is None:
            return
        try:
            logged = await asyncio.to_thread(logged_xids)
        except OSError as error:
            reason = f"cannot read the kernel's log ({error.strerror}): XIDs from before this start are not known"
            self._parts.supervisor.journal.note("kernel-log", reason)
        else:
            self._parts.care.catch_up(logged)

    async def _begin(self, socket: str) -> None:
        """Resume what was applied, or apply the file of the start."""
        journal = self._parts.supervisor.journal
        journal.note("daemon-started", f"gpuward {__version__}, pid {os.getpid()}, socket {socket}")
        if not self._notify.present and socket != DEFAULT_SOCKET:
            journal.log.info("socket", reason=f"for gpuctl in another shell: export GPUWARD_SOCKET={socket}")
        if self._simulate is not None:
            journal.note("simulated", f"these GPUs are SIMULATED: {self._simulate}", level="warning")
        try:
            async with asyncio.timeout(self._sample_within_s):
                await self._first_sample.wait()
        except TimeoutError:
            journal.note("inventory", "no GPU sample yet; goes on without", level="warning")
        await self._catch_up()
        self._parts.supervisor.notice("leases-not-shared", self._parts.equipment.leases.trouble())
        self._takeover.begin()
        self._lookout.tell_set_aside()
        if self._parts.fleets.stored is None:
            self._apply_first()
        elif self._parts.fleets.drift_reason is not None:
            journal.note("fleet-file", f"not applied: {self._parts.fleets.drift_reason}", level="warning")
        self._takeover.settle()
        self._parts.supervisor.endpoints.open()
        self._parts.commands.open = True
        self._notify.ready(self._status_line())

    def _apply_first(self) -> None:
        """Apply the file of the start where no fleet is on record; what runs is never left alone for a bad file."""
        try:
            self._apply_start_file()
        except CannotRun as error:
            if not self._takeover.supervises:
                raise
            self._takeover.go_on_without_a_fleet(str(error))
        waits = self._waiting_for_inventory or self._parts.fleets.stored is not None
        if not waits and self._takeover.supervises:
            self._takeover.go_on_without_a_fleet("no fleet is on record and none was given with --fleet")

    def _apply_start_file(self) -> None:
        """A host whose GPUs do not answer yet is waited for, a bad file is not."""
        path = self._parts.fleets.start_file
        if path is None:
            return
        try:
            proposal = self._parts.fleets.propose(decoded(read_fleet_file(path)))
        except (OSError, ValueError) as error:
            raise CannotRun(f"cannot read {path}: {unreadable(error)}", permanent=True) from None
        if proposal.plan.ok:
            try:
                self._parts.fleets.apply(proposal, unsaved=self._takeover.supervises)
            except (OSError, PortsExhausted) as error:
                raise CannotRun(f"cannot apply {path}: {error}", permanent=False) from None
        elif any(problem.code == "inventory-unavailable" for problem in proposal.plan.problems):
            self._waiting_for_inventory = True
            self._parts.fleets.look_for_drift()
            reason = f"{path} waits for the GPU inventory: {proposal.plan.problems[0].message}"
            self._parts.supervisor.journal.note("fleet-waits", reason, level="warning")
        else:
            lines = "\n".join(f"  {problem.code}: {problem.message}" for problem in proposal.plan.problems)
            raise CannotRun(f"cannot apply {path}:\n{lines}", permanent=True)

    def _handle_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        loop.add_signal_handler(signal.SIGCHLD, self._parts.equipment.reaper.reap)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP, signal.SIGTERM, signal.SIGINT})

    def _stop(self) -> None:
        self._stops += 1
        if self._stops > 1:
            self._parts.supervisor.journal.note(
                "hurry", "asked a second time to stop: kills every worker", level="warning"
            )
            self._parts.supervisor.hurry()
            return
        if self._notify.present:
            self._asking = asyncio.create_task(self._stop_as_systemd_means_it())
        else:
            self._halt()

    async def _stop_as_systemd_means_it(self) -> None:
        """A restart of the service leaves the workers to the next daemon; a stop stops them."""
        job = await asyncio.to_thread(pending_job)
        if job == "restart":
            self._departure.ask("systemd restarts the service")
        else:
            self._halt()

    async def _depart(self) -> None:
        """Return when this daemon is to leave its workers to the next one; it may go on in this very process."""
        departure = self._departure
        await departure.asked.wait()
        self._parts.supervisor.journal.note(
            "daemon-detaches", f"{departure.reason}: the workers keep running", by=departure.by
        )
        if departure.replaces:
            self._notify.reloading()
        else:
            self._notify.stopping(5.0)
        await asyncio.sleep(ANSWER_LEAVES_S)

    def _halt(self) -> None:
        self._parts.supervisor.journal.note("daemon-stops", "stops every worker, dependents first")
        self._notify.stopping(self._longest_stop_s())
        self._parts.supervisor.command(policy.halt)

    def _longest_stop_s(self) -> float:
        state = self._parts.supervisor.state
        stops_s = longest_stop_s(state.workers.values(), state.pools)
        return stops_s + self._parts.equipment.settings.endpoints.settle_s + 30.0

    def _hang_up(self) -> None:
        """SIGHUP: somebody asks to reload, or the terminal that the daemon was started on is gone and nobody does."""
        if self._had_terminal and not has_terminal():
            self._had_terminal = False
            reason = "the terminal was closed; gpuward and its workers keep running (kill -TERM stops them in order)"
            self._parts.supervisor.journal.note("terminal-closed", reason, level="warning")
        else:
            self._reload()

    def _reload(self) -> None:
        self._notify.reloading()
        try:
            document = self._parts.commands.reload(by=SIGHUP)
            self._parts.supervisor.journal.note("reloaded", f"revision {document['revision']} is applied")
        except Refusal as refusal:
            self._parts.supervisor.journal.note("reload-refused", str(refusal), level="warning")
        self._notify.ready(self._status_line())

    def _on_turn(self) -> None:
        """Tell systemd that the loop goes round, from the loop itself."""
        self._lookout.look(time.monotonic())
        self._notify.turned(time.monotonic())
        self._notify.status(self._status_line())

    def _status_line(self) -> str:
        state = self._parts.supervisor.state
        workers = state.workers.values()
        alive = [worker.name for worker in workers if worker.alive]
        if state.halting:
            return f"stopping: {len(alive)} of {len(workers)} workers still run: {_some(alive)}"
        wanted = [worker for worker in workers if worker.goal is Goal.UP]
        ready = sum(worker.phase is Phase.READY for worker in wanted)
        failed = [worker.name for worker in workers if worker.phase is Phase.FAILED]
        trouble = f"; failed: {_some(failed)}" if failed else ""
        return f"{ready} of {len(wanted)} workers ready, revision {self._parts.fleets.revision}{trouble}"


def _some(names: list[str]) -> str:
    """The first five names, and how many more."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "none") + more


def _fail(failed: asyncio.Future[None], context: dict[str, Any]) -> None:
    """An unexpected error anywhere on the loop ends the daemon; the next one adopts the workers."""
    if not failed.done():
        error = context.get("exception")
        failed.set_exception(error if isinstance(error, Exception) else RuntimeError(str(context.get("message"))))
