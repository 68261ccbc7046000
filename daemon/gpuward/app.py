"""The composition root: reads configuration, builds the host or its simulation, runs it. The only place that builds."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from gpuward.api.commands import Commands, Others
from gpuward.api.gpu_commands import GpuCommands, Simulation
from gpuward.api.leaving import Leaving
from gpuward.api.views import Views
from gpuward.config.errors import ConfigError
from gpuward.config.files import read_file
from gpuward.config.host import DEFAULT_GROUP, HostSettings
from gpuward.config.host_file import decode_host_toml
from gpuward.control.roles import Roles
from gpuward.control.server import Server, SocketInUse
from gpuward.engines.launch import HostContext
from gpuward.host.cgroups import Host, find_cgroups
from gpuward.host.daemon_log import LogTarget, open_log
from gpuward.host.gpus import GpuProvider, NoGpus, NvmlGpus
from gpuward.host.leases import HOST_PLACES, Leases
from gpuward.host.notify import Notify
from gpuward.host.own_process import AlreadyLocked, Reaper, keep_private, lock_directory, raise_file_limit
from gpuward.host.records import Records
from gpuward.host.reexec import replace
from gpuward.host.runs import Runs
from gpuward.host.runtime_directory import MARK, RuntimeDirectory
from gpuward.host.sampler import Sampler
from gpuward.host.threads import block_signals, started_threads
from gpuward.host.xids import XidListener
from gpuward.policy.fleet.endpoints import Listing
from gpuward.policy.fleet.step import FleetState, Terms
from gpuward.supervisor.applied_fleet import Fleets
from gpuward.supervisor.daemon import CannotRun, Daemon, Parts, Surroundings
from gpuward.supervisor.departure import Departure
from gpuward.supervisor.equipment import Equipment
from gpuward.supervisor.gpu_care import GpuCare
from gpuward.supervisor.journal import Journal
from gpuward.supervisor.loop import Supervisor

LONGEST_PAUSE_S = 5.0
"""Of the loop, where nothing happens."""

DEFAULT_CONFIG = Path("/etc/gpuward/gpuward.toml")


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
    """Directories and the socket of this daemon, absolute. ``shared_leases``: places of all daemons of this host."""

    runtime: Path
    state: Path
    logs: Path
    leases: Path
    shared_leases: tuple[Path, ...]
    socket: str

    @property
    def claims(self) -> Path:
        """Where processes of a simulated host claim memory."""
        return self.runtime / "sim-claims"


def run(options: Options) -> None:
    """Run the daemon until it is told to stop; CannotRun where it cannot begin."""
    settings = _settings(options.config)
    places = _places(options, settings)
    try:
        raise_file_limit()
    except OSError as error:
        raise CannotRun(f"cannot start: {error.strerror}", permanent=True) from None
    log, log_target = open_log(settings.logging.level, settings.logging.format)
    runtime = RuntimeDirectory(places.runtime, _inside(places, options), simulated=options.simulate is not None)
    state_lock = _take(places, runtime)
    _stamp(places, simulated=options.simulate is not None)
    try:
        replaced = asyncio.run(_run(options, settings, places, runtime, (log, log_target)))
    finally:
        os.close(state_lock)
        runtime.close()
    if replaced:
        replace()


async def _run(
    options: Options,
    settings: HostSettings,
    places: Places,
    runtime: RuntimeDirectory,
    opened: tuple[FilteringBoundLogger, LogTarget],
) -> bool:
    """Live; return whether the installed program is to go on in this process."""
    log, log_target = opened
    control = settings.control
    try:
        asyncio.get_running_loop().set_default_executor(started_threads())
    except OSError as error:
        raise CannotRun(f"{error}; the host or this user has too many processes (ulimit -u)", permanent=False) from None
    server = Server(
        places.socket,
        Roles(control.group, control.admins),
        max_message_bytes=control.max_message_bytes,
        open_to_all=control.others == "read",
    )
    try:
        server.open()
    except (SocketInUse, OSError) as error:
        raise CannotRun(str(error), permanent=False) from None
    try:
        notify = Notify()
        surroundings = Surroundings(
            log=log, log_target=log_target, notify=notify, server=server, runtime=runtime, departure=Departure()
        )
        parts = build(options, settings, places, surroundings)
        daemon = Daemon(
            parts, surroundings, simulate=options.simulate, sample_within_s=settings.inventory.deadline_s + 1
        )
        if server.trouble and (control.group != DEFAULT_GROUP or notify.present):  # no service has no operators
            parts.supervisor.notice("control-group", server.trouble)
        await daemon.live()
        if surroundings.departure.replaces:  # before the loop lets go of them: the new program answers what comes now
            block_signals()
        return surroundings.departure.replaces
    finally:
        server.close()


def _settings(path: Path | None) -> HostSettings:
    chosen = path if path is not None else DEFAULT_CONFIG
    try:
        return decode_host_toml(read_file(str(chosen)), file=str(chosen))
    except FileNotFoundError:
        if path is None:
            return HostSettings()
        raise CannotRun(f"cannot read {path}: there is no such file", permanent=True) from None
    except (OSError, ValueError) as error:
        raise CannotRun(f"cannot read {chosen}: {error}", permanent=True) from None
    except ConfigError as error:
        raise CannotRun(str(error), permanent=True) from None


def _places(options: Options, settings: HostSettings) -> Places:
    given = settings.directories
    runtime = (
        options.runtime_dir
        or _path(given.runtime)
        or _from_systemd("RUNTIME_DIRECTORY")
        or _default("/run/gpuward", "XDG_RUNTIME_DIR", ".cache/run")
    )
    state = (
        options.state_dir
        or _path(given.state)
        or _from_systemd("STATE_DIRECTORY")
        or _default("/var/lib/gpuward", "XDG_STATE_HOME", ".local/state")
    )
    runtime, state = runtime.absolute(), state.absolute()
    beside_state = None if options.state_dir else _from_systemd("LOGS_DIRECTORY")
    socket = options.socket or settings.control.socket or str(runtime / "control.sock")
    if options.simulate is not None:  # what is simulated never lies where the host's own state is looked for
        runtime = runtime if options.runtime_dir else runtime / "simulated"
        state = state if options.state_dir else state / "simulated"
    return Places(
        runtime=runtime,
        state=state,
        logs=_path(given.logs) or beside_state or state / "logs",
        leases=runtime / "leases",
        shared_leases=_shared_leases(options, given.leases),
        socket=str(Path(socket).absolute()),
    )


def _shared_leases(options: Options, named: str | None) -> tuple[Path, ...]:
    """The place that the settings name, else the host's; simulated GPUs have the same UUIDs in every simulation."""
    if named is not None:
        return (Path(named),)
    return () if options.simulate is not None else HOST_PLACES


def _from_systemd(variable: str) -> Path | None:
    """The first directory that the unit asks for by StateDirectory= and its kind (systemd.exec(5))."""
    return _path(os.environ.get(variable, "").partition(":")[0] or None)


def _path(text: str | None) -> Path | None:
    return Path(text) if text is not None else None


def _default(system: str, variable: str, below_home: str) -> Path:
    """The system's directory for root and for a service that was given it, else the user's own."""
    path = Path(system)
    if os.access(path if path.exists() else path.parent, os.W_OK):
        return path
    base = os.environ.get(variable)
    return (Path(base) if base else Path.home() / below_home) / "gpuward"


def _inside(places: Places, options: Options) -> tuple[Path, ...]:
    """What belongs in the runtime directory."""
    return (places.leases, places.claims) if options.simulate is not None else (places.leases,)


def _take(places: Places, runtime: RuntimeDirectory) -> int:
    """Make the directories and lock them; return the lock of the state directory."""
    try:
        for path in (places.state, places.logs):
            path.mkdir(parents=True, exist_ok=True)
        for path in (places.state, places.logs):
            keep_private(path)
        runtime.take()
        return lock_directory(places.state)
    except AlreadyLocked as error:
        message = f"cannot start: {error}; give this one another --state-dir, --runtime-dir and --socket"
        raise CannotRun(message, permanent=False) from None
    except OSError as error:
        message = f"cannot use {error.filename}: {error.strerror}; choose others with --state-dir and --runtime-dir"
        raise CannotRun(message, permanent=True) from None


def _stamp(places: Places, *, simulated: bool) -> None:
    """Mark the directories of a simulated host; CannotRun where they hold what is of the other kind."""
    for path, option in ((places.state, "--state-dir"), (places.runtime, "--runtime-dir")):
        mark = path / MARK
        used = any((path / name).exists() for name in ("fleet.json", "instance", "runs"))
        if used and mark.exists() != simulated:
            kind, other = ("a simulated", "the real") if mark.exists() else ("a real", "a simulated")
            message = f"cannot use {path} for {other} host: it holds what belongs to {kind} one; give another {option}"
            raise CannotRun(message, permanent=True)
        if simulated:
            with suppress(OSError):  # a full disk: the next start will try again
                mark.touch()


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where GPU facts come from; ``simulation`` is the same where it is one, ``env`` what its workers are told."""

    provider: GpuProvider
    simulation: Simulation | None = None
    env: dict[str, str] = field(default_factory=dict)


def _source(options: Options, settings: HostSettings, claims: Path) -> Source:
    if options.simulate is None:
        return Source(provider=NvmlGpus() if settings.inventory.provider == "nvml" else NoGpus())
    from gpuward.sim.gpus import SimulatedGpus

    try:
        simulated = SimulatedGpus(options.simulate, claims)
    except ValueError as error:
        raise CannotRun(f"cannot simulate {options.simulate!r}: {error}", permanent=True) from None
    return Source(provider=simulated, simulation=simulated, env=dict(simulated.environment()))


def build(options: Options, settings: HostSettings, places: Places, around: Surroundings) -> Parts:
    """Put everything together; CannotRun where the simulation that is asked for is none."""
    source = _source(options, settings, places.claims)
    records, runs = Records(places.state), Runs(places.runtime / "runs", places.logs)
    records.prepare()
    runs.prepare()
    sampler = Sampler(
        source.provider,
        interval_s=settings.inventory.sample_interval_s,
        deadline_s=settings.inventory.deadline_s,
    )
    simulated = options.simulate is not None
    equipment = Equipment(
        settings=settings,
        context=HostContext(
            python=sys.executable, simulated=simulated, inherited_env=dict(os.environ), sim_env=source.env
        ),
        records=records,
        runtime=around.runtime,
        runs=runs,
        sampler=sampler,
        xids=XidListener() if isinstance(source.provider, NvmlGpus) else None,
        leases=Leases(places.leases, places.shared_leases),
        logs=places.logs,
        instance=records.instance(),
        reaper=Reaper(),
        cgroups=find_cgroups(Host.this(), records.instance()),
        tick_s=around.notify.tick_s(LONGEST_PAUSE_S),
    )
    journal = Journal(records.next_epoch(), around.log, around.server.publish)
    terms = Terms(
        memory_margin_bytes=settings.limits.memory_margin_bytes,
        release_timeout_s=settings.limits.release_timeout_s,
        excluded=settings.inventory.exclude,
    )
    endpoints = settings.endpoints
    listing = Listing(settle_s=endpoints.settle_s) if endpoints.directory is not None else None
    state = FleetState(snapshot=sampler.latest, terms=terms, listing=listing)
    supervisor = Supervisor(equipment, journal, state)
    fleets = Fleets(supervisor, equipment, options.fleet)
    care = GpuCare(supervisor, records, settings)
    views = Views(supervisor, fleets, care, time.monotonic())
    gpus = GpuCommands(equipment, care, views, source.simulation)
    others = Others(gpus=gpus, leaving=Leaving(supervisor, around.departure), counters=around.server.counters)
    commands = Commands(equipment, supervisor, fleets, views, others)
    return Parts(equipment=equipment, supervisor=supervisor, fleets=fleets, care=care, commands=commands)
