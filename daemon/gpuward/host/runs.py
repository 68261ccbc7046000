"""Run directories: the daemon's side of the keeper's files, and starting keepers. Nothing here decides when.

``RUNTIME/runs/POOL/INDEX/lock`` is locked by the living keeper of that worker (and by the daemon while it starts one),
so at most one run of a worker exists whatever is killed; ``.../RUN/`` is described in `keeper`. Beside the keeper's
files it holds ``pool``, the pool that the run was started from (JSON): what runs can be taken over without any record;
and ``terminated``, empty, once SIGTERM has been sent to it.
"""

from __future__ import annotations

import fcntl
import os
import py_compile
import resource
import shutil
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from gpuward.config.fleet import Pool
from gpuward.host import keeper
from gpuward.host.cgroups import Seat
from gpuward.host.crash_points import around
from gpuward.host.files import RUN_FILE_MAX_BYTES, read_regular
from gpuward.host.processes import Identity, boot_id
from gpuward.host.text import encoded

SOCKET_PATH_MAX = 107  # unix(7): sun_path holds 108 bytes, the last is NUL
SOCKET_NAME_MAX = 37  # "/" and a UUID, as vLLM names its own
OOM_SCORE_ADJ = 200
"""Workers are to be killed before the daemon and the rest of the host (proc(5), oom_score_adj)."""


LEASE_REFUSAL = "the lease "
"""How keepers of versions before 0.3 begin to say that a GPU's lease is held; later ones say that it may pass."""


class StillRunning(Exception):
    """A keeper of this worker is alive; the message names its run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What a keeper needs to know. ``leases`` are paths; ``share`` takes them shared.

    ``pool`` is what the run was started from, ``definition`` the digest of what the fleet said of it (`reload`): for
    the daemon that takes the run over, the keeper does not read them.
    ``seat`` is the run's own cgroup, None where it stays in the daemon's.
    """

    worker: str
    run: int
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    working_directory: str
    leases: tuple[str, ...]
    share: bool
    log: Path
    log_max_bytes: int
    gpu_uuids: tuple[str, ...]
    port: int | None
    marker: str
    pool: Pool | None = None
    definition: str = ""
    seat: Seat | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawned:
    """A keeper that was just started; ``started_fd`` becomes readable when its worker has (or has not) been started."""

    directory: Path
    keeper_pid: int
    started_fd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The end record of a run; ``error`` is set where the worker was never started, ``passing`` where it may be later.

    ``error_kind`` says what an error was about (`keeper.CannotStart`).
    ``at`` is wall time, ``at_s`` the same instant in monotonic seconds, None where no record tells it. ``oom_proven``:
    the kernel's kills were counted in the run's own cgroup; else they are of the whole host.
    """

    at: float
    at_s: float | None
    code: int | None
    signal: int | None
    error: str
    error_kind: str
    descendants_killed: int
    oom_kills: int
    oom_proven: bool
    max_rss_bytes: int
    log_lost_bytes: int
    passing: bool = False


class Runs:
    """All run directories of one daemon, below ``root``; ``logs``: where their output goes, `log_path`."""

    def __init__(self, root: Path, logs: Path | None = None) -> None:
        self.root = root
        self._logs = logs if logs is not None else root
        self._keeper = root.parent / "keeper.pyc"
        self._compiled = b""
        self._nofile = resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def prepare(self) -> None:
        """Make the directories, and a compiled keeper of this version: it starts faster and outlives the package.

        Where there is no room for it (a full disk must not keep the daemon from its workers) its source serves.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(OSError):
            (self.root / "keeper.pyc").unlink()  # versions to 0.1 put it where a pool may be called so
        with suppress(OSError):
            py_compile.compile(keeper.__file__, cfile=str(self._keeper), doraise=True)
            self._compiled = self._keeper.read_bytes()

    def worker_directory(self, worker: str) -> Path:
        """Directory of a worker's runs."""
        return self.root / worker

    def directory(self, worker: str, run: int) -> Path:
        """Directory of one run."""
        return self.root / worker / str(run)

    def sockets(self, worker: str, run: int) -> Path | None:
        """Directory for sockets that a run makes itself, gone with the run's; None where their paths get too long."""
        path = self.directory(worker, run) / "sockets"
        return path if len(os.fsencode(path)) <= SOCKET_PATH_MAX - SOCKET_NAME_MAX else None

    def start(self, spec: RunSpec) -> Spawned:
        """Write the run's directory and start its keeper; StillRunning where one of this worker is alive."""
        lock = self._lock(spec.worker)
        try:
            self._clear(spec.worker)
            directory = self.directory(spec.worker, spec.run)
            with around("spec"):
                self._write(spec, directory)
            with around("spawn"):
                return self._spawn(directory, lock, spec.seat.wrapper if spec.seat else ())
        finally:
            os.close(lock)

    def is_kept(self, worker: str) -> bool:
        """Whether a keeper of this worker is alive (or just being started)."""
        try:
            os.close(self._lock(worker))
        except StillRunning:
            return True
        return False

    def in_place(self, worker: str, run: int) -> bool:
        """Whether the directory of a run is still there (a cleaner may have taken it)."""
        return (self.directory(worker, run) / "spec").exists()

    def keeper_identity(self, worker: str, run: int) -> Identity | None:
        """Identity of the keeper as it announced itself; None where it has not."""
        return _identity(self.directory(worker, run) / "keeper")

    def main_identity(self, worker: str, run: int) -> Identity | None:
        """Identity of the worker's main process; None where it was not started."""
        return _identity(self.directory(worker, run) / "started")

    def spec(self, worker: str, run: int) -> dict[str, list[str]]:
        """The spec as written; empty where it cannot be read."""
        return pairs_of(self.directory(worker, run) / "spec")

    def ending(self, worker: str, run: int) -> Ending | None:
        """The end record; None where the keeper wrote none. It is beside the log where there was no room for it."""
        beside = self._logs / worker / f"{run}.log.end"
        return self._ending(self.directory(worker, run) / "end") or self._ending(beside)

    def _ending(self, path: Path) -> Ending | None:
        try:
            pairs = _pairs_in(path)
            word = {key: values[0] for key, values in pairs.items()}
            return Ending(
                at=float(word["at"]),
                at_s=float(word["monotonic"]),
                code=int(word["code"]) if word["code"] else None,
                signal=int(word["signal"]) if word["signal"] else None,
                error=word["error"],
                error_kind=word.get("error_kind") or kind_of_old(word["error"]),
                descendants_killed=int(word["descendants_killed"]),
                oom_kills=int(word["oom_kills"]),
                oom_proven=word.get("oom_kills_of") == "run",
                max_rss_bytes=int(word["max_rss_bytes"]),
                log_lost_bytes=int(word["log_lost_bytes"]),
                passing=word.get("passing") == "yes" or word["error"].startswith(LEASE_REFUSAL),
            )
        except (OSError, KeyError, ValueError):
            return None

    def keep_tree(self, worker: str, run: int, members: Iterable[Identity]) -> None:
        """Note who belongs to a run, for when its keeper can tell it no more; a full disk loses the note."""
        pairs: list[tuple[str, object]] = [("member", f"{one.pid} {one.start_ticks}") for one in members]
        with suppress(OSError):
            keeper.write_pairs(str(self.directory(worker, run)), "tree", pairs)

    def kept_tree(self, worker: str, run: int) -> tuple[Identity, ...]:
        """Who belonged to a run when it was looked at last."""
        boot = self.spec(worker, run).get("boot_id", [""])[0]
        words = [text.split() for text in pairs_of(self.directory(worker, run) / "tree").get("member", [])]
        return tuple(Identity(boot, int(pid), int(ticks)) for pid, ticks in words if (pid + ticks).isdecimal())

    def note_terminated(self, worker: str, run: int) -> bool:
        """Note that a run is sent SIGTERM, just before it is; False where it has been, maybe by an earlier daemon."""
        try:
            os.close(os.open(self.directory(worker, run) / "terminated", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return False
        except OSError:
            return True  # a full disk keeps no run from its stop
        return True

    def log_trouble(self, worker: str, run: int) -> str:
        """Why output of a run was lost; empty where none was."""
        return pairs_of(self.directory(worker, run) / "log-lost").get("error", [""])[0]

    def stillborn(self, worker: str, run: int) -> str:
        """Why a keeper never came to be, where what was to become it said so; empty where it did."""
        directory = self.directory(worker, run)
        try:
            said = read_regular(directory / "keeper.err", RUN_FILE_MAX_BYTES).decode(errors="replace").split("\n")
        except OSError:
            return ""
        lines = [line for line in said if line.strip()]
        return f"cannot prepare the keeper: {lines[-1]}" if lines and not (directory / "keeper").exists() else ""

    def forget(self, worker: str) -> None:
        """Remove everything of a worker that left the fleet."""
        shutil.rmtree(self.worker_directory(worker), ignore_errors=True)
        with suppress(OSError):
            self.worker_directory(worker).parent.rmdir()

    def _lock(self, worker: str) -> int:
        directory = self.worker_directory(worker)
        directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                raise StillRunning(f"a keeper of {worker} is alive") from None
            raise
        return fd

    def _clear(self, worker: str) -> None:
        """Remove earlier runs: we hold the lock, so none of them lives, and their ends are in the history."""
        for path in self.worker_directory(worker).iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    def _write(self, spec: RunSpec, directory: Path) -> None:
        Path(f"{spec.log}.end").unlink(missing_ok=True)  # of a start that was refused under the same number
        directory.mkdir(mode=0o700, exist_ok=True)  # the environment and the pool may hold secrets
        (directory / "sockets").mkdir(exist_ok=True)
        (directory / "argv").write_bytes(_entries(spec.argv))
        (directory / "environ").write_bytes(_entries(f"{key}={value}" for key, value in spec.environment.items()))
        if spec.pool is not None:
            (directory / "pool").write_bytes(encoded(spec.pool))
        pairs: list[tuple[str, object]] = [
            ("worker", spec.worker),
            ("run", spec.run),
            ("boot_id", boot_id()),
            ("cwd", spec.working_directory),
            ("share", "yes" if spec.share else "no"),
            ("log", spec.log),
            ("log_max_bytes", spec.log_max_bytes),
            ("nofile", self._nofile),
            ("oom_score_adj", OOM_SCORE_ADJ),
            ("marker", spec.marker),
            ("port", spec.port or ""),
            ("definition", spec.definition),
            ("cgroup", spec.seat.path if spec.seat else ""),
            *(("lease", path) for path in spec.leases),
            *(("gpu", uuid) for uuid in spec.gpu_uuids),
        ]
        keeper.write_pairs(str(directory), "spec", pairs)

    def _program(self) -> Path:
        """The keeper's program: as compiled at the start, written again where somebody deleted it; else its source."""
        if self._compiled:
            with suppress(OSError):
                if not self._keeper.exists():
                    _write_whole(self._keeper, self._compiled)
                return self._keeper
        return Path(keeper.__file__)

    def _spawn(self, directory: Path, lock: int, wrapper: tuple[str, ...]) -> Spawned:
        command = [*wrapper, sys.executable, "-I", "-S", str(self._program()), str(directory)]
        with ExitStack() as ours:
            started, started_end = os.pipe()
            ours.callback(os.close, started_end)
            unless_spawned = ours.enter_context(ExitStack())
            unless_spawned.callback(os.close, started)
            errors = os.open(directory / "keeper.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            ours.callback(os.close, errors)
            null = os.open(os.devnull, os.O_RDONLY)
            ours.callback(os.close, null)
            pid = os.posix_spawn(
                command[0],
                command,
                {"PATH": os.environ.get("PATH", os.defpath)},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, null, 0),
                    (os.POSIX_SPAWN_DUP2, started_end, 1),
                    (os.POSIX_SPAWN_DUP2, errors, 2),
                    (os.POSIX_SPAWN_DUP2, lock, keeper.LOCK_FD),
                ],
                setsid=True,
            )
            unless_spawned.pop_all()
        return Spawned(directory=directory, keeper_pid=pid, started_fd=started)


def _write_whole(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    temporary.rename(path)


def kind_of_old(error: str) -> str:
    """What an error was about, by the words of keepers that did not say it: they may outlive their version by weeks."""
    if not error:
        return ""
    if any(os.strerror(number) in error for number in keeper.PASSING_ERRORS):
        return "resource"
    begins = {"the lease ": "lease", "the run's record": "record", "[Errno": "resource", "cannot prepare": "prepare"}
    return next((kind for begin, kind in begins.items() if error.startswith(begin)), "exec")


def _entries(values: Iterable[str]) -> bytes:
    return b"".join(os.fsencode(value) + b"\0" for value in values)


def pairs_of(path: Path) -> dict[str, list[str]]:
    """The pairs of a file; none where it cannot be read."""
    try:
        return _pairs_in(path)
    except (OSError, ValueError):
        return {}


def _pairs_in(path: Path) -> dict[str, list[str]]:
    return keeper.pairs_in(read_regular(path, RUN_FILE_MAX_BYTES))


def _identity(path: Path) -> Identity | None:
    try:
        pairs = _pairs_in(path)
        return Identity(
            boot_id=_pairs_in(path.parent / "spec")["boot_id"][0],
            pid=int(pairs["pid"][0]),
            start_ticks=int(pairs["start_ticks"][0]),
        )
    except (OSError, KeyError, ValueError):
        return None
