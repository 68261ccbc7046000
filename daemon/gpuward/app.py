"""The composition root: reads configuration, builds the host or its simulation, runs the loop. Builds everything."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from structlog.typing import FilteringBoundLogger

from gpuward import __version__
from gpuward.answering.commands import Commands
from gpuward.answering.views import Views
from gpuward.config.errors import ConfigError
from gpuward.config.host import HostSettings
from gpuward.config.host_file import decode_host_toml
from gpuward.control.server import Refusal, Server, SocketInUse
from gpuward.engines.launch import HostContext
from gpuward.equipment import Equipment
from gpuward.fleets import Fleets, read_fleet_file
from gpuward.host.daemon_log import open_log
from gpuward.host.gpus import GpuProvider, NoGpus, NvmlGpus
from gpuward.host.notify import Notify
from gpuward.host.process_setup import AlreadyLocked, become_subreaper, lock_directory, raise_file_limit, reap
from gpuward.host.processes import boot_id
from gpuward.host.records import Records
from gpuward.host.runs import Runs
from gpuward.host.sampler import Sampler
from gpuward.host.unit_job import pending_job
from gpuward.journal import Journal
from gpuward.policy import fleet as policy
from gpuward.policy.fleet import FleetState, Terms
from gpuward.policy.inventory import Snapshot
from gpuward.policy.life import Phase
from gpuward.policy.ports import PortsExhausted
from gpuward.policy.resume import resumed
from gpuward.supervisor import Supervisor

DEFAULT_CONFIG = Path("/etc/gpuward/gpuward.toml")


class CannotRun(Exception):
    """The daemon cannot start; ``permanent`` where only a changed configuration helps."""

    def __init__(self, message: str, *, permanent: bool) -> None:
        super().__init__(message)
        self.permanent = permanent


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    config: Path | None = None
    fleet: Path | None = None
    simulate: str | None = None
    socket: str | None = None
    state_dir: Path | None = None
    runtime_dir: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Directories and the socket of this daemon, absolute."""

    runtime: Path
    state: Path
    logs: Path
    leases: Path
    socket: str


def run(options: Options) -> None:
    """Run the daemon until it is told to stop; CannotRun where it cannot begin."""
    settings = _settings(options.config)
    places = _places(options, settings)
    log = open_log(settings.logging.level, settings.logging.format)
    locks = _take(places)
    try:
        asyncio.run(Daemon(options, settings, places, log).run())
    finally:
        for fd in locks:
            os.close(fd)


def _settings(path: Path | None) -> HostSettings:
    chosen = path if path is not None else DEFAULT_CONFIG
    try:
        return decode_host_toml(chosen.read_text(encoding="utf-8"), file=str(chosen))
    except FileNotFoundError:
        if path is None:
            return HostSettings()
        raise CannotRun(f"cannot read {path}: there is no such file", permanent=True) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CannotRun(f"cannot read {chosen}: {error}", permanent=True) from None
    except ConfigError as error:
        raise CannotRun(str(error), permanent=True) from None


def _places(options: Options, settings: HostSettings) -> Places:
    given = settings.directories
    runtime = options.runtime_dir or _path(given.runtime) or _default("/run/gpuward", "XDG_RUNTIME_DIR", ".cache/run")
    state = options.state_dir or _path(given.state) or _default("/var/lib/gpuward", "XDG_STATE_HOME", ".local/state")
    runtime, state = runtime.absolute(), state.absolute()
    socket = options.socket or settings.control.socket or str(runtime / "control.sock")
    return Places(
        runtime=runtime,
        state=state,
        logs=_path(given.logs) or state / "logs",
        leases=_path(given.leases) or runtime / "leases",
        socket=str(Path(socket).absolute()),
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text is not None else None


def _default(system: str, variable: str, below_home: str) -> Path:
    """The system's directory for root and for a service that was given it, else the user's own."""
    path = Path(system)
    if os.access(path if path.exists() else path.parent, os.W_OK):
        return path
    base = os.environ.get(variable)
    return (Path(base) if base else Path.home() / below_home) / "gpuward"


def _take(places: Places) -> list[int]:
    """Make the directories and lock them."""
    try:
        for path in (places.runtime, places.state, places.logs, places.leases):
            path.mkdir(parents=True, exist_ok=True)
        return [lock_directory(places.state), lock_directory(places.runtime)]
    except AlreadyLocked as error:
        message = f"cannot start: {error}; give this one another --state-dir, --runtime-dir and --socket"
        raise CannotRun(message, permanent=False) from None
    except OSError as error:
        message = f"cannot use {error.filename}: {error.strerror}; choose others with --state-dir and --runtime-dir"
        raise CannotRun(message, permanent=True) from None


def _provider(options: Options, settings: HostSettings, claims: Path) -> tuple[GpuProvider, dict[str, str]]:
    """The source of GPU facts, and what a simulated host tells its workers."""
    if options.simulate is None:
        return (NvmlGpus() if settings.inventory.provider == "nvml" else NoGpus()), {}
    from gpuward.sim.gpus import SimulatedGpus

    claims.mkdir(parents=True, exist_ok=True)
    try:
        simulated = SimulatedGpus(options.simulate, claims)
    except ValueError as error:
        raise CannotRun(f"cannot simulate {options.simulate!r}: {error}", permanent=True) from None
    return simulated, dict(simulated.environment())


class Daemon:
    """One life of the daemon."""

    def __init__(self, options: Options, settings: HostSettings, places: Places, log: FilteringBoundLogger) -> None:
        self._options = options
        self._settings = settings
        self._places = places
        self._log = log
        self._notify = Notify()
        self._stops = 0
        self._detached = asyncio.Event()
        self._waiting_for_inventory = False
        self._watchdog_at_s = 0.0
        self._status = ""

    async def run(self) -> None:
        """Open, resume, run, stop."""
        server = Server(
            self._places.socket,
            group=self._settings.control.group,
            max_message_bytes=self._settings.control.max_message_bytes,
        )
        try:
            server.open()
        except (SocketInUse, OSError) as error:
            raise CannotRun(str(error), permanent=False) from None
        try:
            await self._live(server)
        finally:
            server.close()

    async def _live(self, server: Server) -> None:
        self._build(server)
        loop = asyncio.get_running_loop()
        failed: asyncio.Future[None] = loop.create_future()
        loop.set_exception_handler(lambda _, context: _fail(failed, context))
        self._handle_signals(loop)
        become_subreaper()
        self._first_sample = asyncio.Event()
        self._equipment.sampler.start(loop)
        serving = asyncio.create_task(server.serve(self._commands.dispatch))
        try:
            await self._begin()
            turning = asyncio.create_task(self._supervisor.run(self._on_turn))
            detached = asyncio.create_task(self._detached.wait())
            watched: set[asyncio.Future[Any]] = {serving, turning, failed, detached}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for done in (failed, serving, turning):
                if done.done():
                    done.result()
            turning.cancel()
            self._log.info("stopped", reason="the workers go on" if detached.done() else "every worker is down")
            detached.cancel()
        finally:
            serving.cancel()
            self._supervisor.runner.close()
            self._equipment.sampler.stop()

    def _build(self, server: Server) -> None:
        provider, sim_env = _provider(self._options, self._settings, self._places.runtime / "sim-claims")
        records = Records(self._places.state)
        runs = Runs(self._places.runtime / "runs")
        records.prepare()
        runs.prepare()
        raise_file_limit()
        inventory = self._settings.inventory
        sampler = Sampler(
            provider,
            interval_s=inventory.sample_interval_s,
            deadline_s=inventory.deadline_s,
            publish=self._observe,
        )
        context = HostContext(
            python=sys.executable,
            simulated=self._options.simulate is not None,
            inherited_env=dict(os.environ),
            sim_env=sim_env,
        )
        self._equipment = Equipment(
            settings=self._settings,
            context=context,
            records=records,
            runs=runs,
            sampler=sampler,
            leases=self._places.leases,
            logs=self._places.logs,
            instance=records.instance(),
        )
        journal = Journal(records.next_epoch(), self._log, server.publish)
        limits = self._settings.limits
        terms = Terms(memory_margin_bytes=limits.memory_margin_bytes, release_timeout_s=limits.release_timeout_s)
        self._supervisor = Supervisor(self._equipment, journal, FleetState(snapshot=sampler.latest, terms=terms))
        self._fleets = Fleets(self._supervisor, records, self._settings, self._options.fleet)
        views = Views(self._supervisor, self._fleets, time.monotonic())
        self._commands = Commands(self._equipment, self._supervisor, self._fleets, views)

    def _observe(self, snapshot: Snapshot) -> None:
        self._supervisor.observe(snapshot)
        self._first_sample.set()
        if self._waiting_for_inventory and snapshot.state == "ok":
            self._waiting_for_inventory = False
            self._apply_first()

    async def _begin(self) -> None:
        """Resume what was applied, or apply the file of the start."""
        journal = self._supervisor.journal
        journal.note("daemon-started", f"gpuward {__version__}, pid {os.getpid()}, socket {self._places.socket}")
        if self._options.simulate is not None:
            journal.note("simulated", f"these GPUs are SIMULATED: {self._options.simulate}", level="warning")
        try:
            async with asyncio.timeout(self._settings.inventory.deadline_s + 1):
                await self._first_sample.wait()
        except TimeoutError:
            journal.note("inventory", "no GPU sample yet; goes on without", level="warning")
        self._resume()
        for broken in self._equipment.records.set_aside:
            journal.note("set-aside", f"{broken.path}: {broken.reason}", level="warning")
        if self._fleets.stored is None or not self._supervisor.state.workers:
            self._apply_first()
        self._commands.open = True
        self._notify.ready(self._status_line())

    def _resume(self) -> None:
        self._fleets.resume()
        if self._fleets.stored is None:
            return
        pools = {pool.name: pool for pool in self._fleets.stored.fleet.pools}
        now_s = time.monotonic()
        workers = {
            name: resumed(record.worker, same_boot=record.boot_id == boot_id(), now_s=now_s)
            for name, record in self._equipment.records.load_workers().items()
            if record.worker.pool in pools
        }
        self._supervisor.adopt(pools, workers)
        self._fleets.settle()

    def _apply_first(self) -> None:
        """Apply the file of the start; a host whose GPUs do not answer yet is waited for, a bad file is not."""
        path = self._options.fleet
        if path is None or self._fleets.stored is not None:
            return
        try:
            proposal = self._fleets.propose(read_fleet_file(path))
        except (OSError, ValueError) as error:
            raise CannotRun(f"cannot read {path}: {error}", permanent=True) from None
        if proposal.plan.ok:
            try:
                self._fleets.apply(proposal)
            except (OSError, PortsExhausted) as error:
                raise CannotRun(f"cannot apply {path}: {error}", permanent=False) from None
        elif any(problem.code == "inventory-unavailable" for problem in proposal.plan.problems):
            self._waiting_for_inventory = True
            reason = f"{path} waits for the GPU inventory: {proposal.plan.problems[0].message}"
            self._supervisor.journal.note("fleet-waits", reason, level="warning")
        else:
            lines = "\n".join(f"  {problem.code}: {problem.message}" for problem in proposal.plan.problems)
            raise CannotRun(f"cannot apply {path}:\n{lines}", permanent=True)

    def _handle_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.add_signal_handler(signal.SIGCHLD, reap)

    def _stop(self) -> None:
        self._stops += 1
        if self._stops > 1:
            self._supervisor.journal.note("hurry", "asked a second time to stop: kills every worker", level="warning")
            self._supervisor.hurry()
            return
        if self._notify.present:
            self._asking = asyncio.create_task(self._stop_as_systemd_means_it())
        else:
            self._halt()

    async def _stop_as_systemd_means_it(self) -> None:
        """A restart of the service leaves the workers to the next daemon; a stop stops them."""
        job = await asyncio.to_thread(pending_job)
        if job == "restart":
            self.detach("systemd restarts the service")
        else:
            self._halt()

    def detach(self, reason: str) -> None:
        """End this daemon and leave every worker running for the next one to adopt."""
        self._supervisor.journal.note("daemon-detaches", f"{reason}: the workers go on without a daemon")
        self._notify.stopping(5.0)
        self._detached.set()

    def _halt(self) -> None:
        self._supervisor.journal.note("daemon-stops", "stops every worker, dependents first")
        self._notify.stopping(self._longest_stop_s())
        self._supervisor.command(policy.halt)

    def _longest_stop_s(self) -> float:
        pools = self._supervisor.state.pools.values()
        return sum(pool.stop_timeout_s for pool in pools) + 30.0

    def _reload(self) -> None:
        self._notify.reloading()
        try:
            document = self._commands.reload()
            self._supervisor.journal.note("reloaded", f"revision {document['revision']} is applied")
        except Refusal as refusal:
            self._supervisor.journal.note("reload-refused", str(refusal), level="warning")
        self._notify.ready(self._status_line())

    def _on_turn(self) -> None:
        """Tell systemd that the loop goes round, from the loop itself."""
        now_s = time.monotonic()
        if self._notify.watchdog_s is not None and now_s - self._watchdog_at_s > self._notify.watchdog_s / 4:
            self._watchdog_at_s = now_s
            self._notify.watchdog()
        if self._notify.present and (line := self._status_line()) != self._status:
            self._status = line
            self._notify.status(line)

    def _status_line(self) -> str:
        workers = self._supervisor.state.workers.values()
        ready = sum(worker.phase is Phase.READY for worker in workers)
        failed = [worker.name for worker in workers if worker.phase is Phase.FAILED]
        trouble = f"; failed: {', '.join(failed[:5])}" if failed else ""
        return f"{ready} of {len(workers)} workers ready, revision {self._fleets.revision}{trouble}"


def _fail(failed: asyncio.Future[None], context: dict[str, Any]) -> None:
    """An unexpected error anywhere on the loop ends the daemon; the next one adopts the workers."""
    if not failed.done():
        error = context.get("exception")
        failed.set_exception(error if isinstance(error, Exception) else RuntimeError(str(context.get("message"))))
