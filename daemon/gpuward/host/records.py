"""What survives the daemon: the applied fleet, each worker's record, the history of its runs, the epoch.

One file each below the state directory, written whole by rename. A file that cannot be read is set aside (renamed to
``*.broken-N``) and reported; it never keeps the daemon from supervising what runs. That a worker is wanted down is also
told by an empty file beside its record, ``N.down`` (as s6 does): what is empty cannot be broken. Decides nothing.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import structs

from gpuward.config.fleet import Fleet
from gpuward.host.files import RECORD_MAX_BYTES, NoRecord, read_regular, write_whole
from gpuward.host.run_numbers import COUNTER
from gpuward.host.sense import absurd_fleet, absurd_number, worker_named
from gpuward.host.text import encoded
from gpuward.host.versions import VERSION as VERSION  # noqa: PLC0414 - who writes records has it from here
from gpuward.host.versions import decoded
from gpuward.policy.diagnosis.causes import LastExit
from gpuward.policy.fleet.operations import Operation
from gpuward.policy.fleet.roll import Roll
from gpuward.policy.gpus.health import Health
from gpuward.policy.worker.life import Goal, LadderStep, Worker

WORD_MAX_BYTES = 4096
"""Of a file that holds one word."""

Record = TypeVar("Record")


class StoredFleet(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet that was applied last. ``source`` is the file's name, ``digest`` the SHA-256 of its text.

    ``rolls``: pools that are being rolled, in the same file so that neither can be there without the other.
    """

    version: int
    revision: int
    source: str
    digest: str
    applied_at: float
    fleet: Fleet
    rolls: dict[str, Roll] = {}


class StoredWorker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker and the boot that its monotonic times belong to."""

    version: int
    boot_id: str
    worker: Worker


class StoredGpus(msgspec.Struct, frozen=True, kw_only=True):
    """GPUs that are out of service, by whose word."""

    version: int
    health: Health = msgspec.field(default_factory=Health)


class StoredOperations(msgspec.Struct, frozen=True, kw_only=True):
    """Commands that somebody may still wait for, and how many there have been."""

    version: int
    count: int
    operations: tuple[Operation, ...] = ()


class MemorySample(msgspec.Struct, frozen=True, kw_only=True):
    """What a run's GPUs held at one moment (wall time); bytes by GPU UUID: used by the run, by all others, and free.

    Others are None (or left out, by earlier versions) where the driver does not tell everything.
    """

    at: float
    used_bytes: dict[str, int]
    free_bytes: dict[str, int | None]
    others_bytes: dict[str, int | None] = {}


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One ended run, for ``gpuctl why``; memory in bytes per GPU UUID, empty where nobody knows it.

    ``claim_bytes`` is what the run might use, ``total_bytes`` what the GPU has; ``step``: what was lowered after it;
    ``log_lost_bytes``: output that its log had no room for.
    """

    version: int
    run: int
    exit: LastExit
    reason: str
    hint: str
    ran_s: float | None
    descendants_killed: int
    max_rss_bytes: int
    gpu_uuids: tuple[str, ...]
    peak_bytes: dict[str, int]
    claim_bytes: dict[str, int] = {}
    total_bytes: dict[str, int] = {}
    samples: tuple[MemorySample, ...] = ()
    step: LadderStep | None = None
    log_lost_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SetAside:
    """A file that could not be used, and why."""

    path: Path
    reason: str


class Records:
    """The state directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.set_aside: list[SetAside] = []

    def prepare(self) -> None:
        """Make the directories."""
        for name in ("workers", "history"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def next_epoch(self) -> int:
        """Count this daemon life; 1 is the first. OSError is reported, the life goes on under the number."""
        path = self.root / "epoch"
        try:
            epoch = int(self._content(path, WORD_MAX_BYTES) or b"") + 1
        except ValueError:
            epoch = 1
        self._try_to_write(path, f"{epoch}\n")
        return epoch

    def instance(self) -> str:
        """An identifier of this state directory: marks processes as ours beside another daemon's."""
        path = self.root / "instance"
        known = (self._content(path, WORD_MAX_BYTES) or b"").decode(errors="replace").strip()
        if known.isalnum():
            return known
        made = secrets.token_hex(6)
        self._try_to_write(path, f"{made}\n")
        return made

    def _try_to_write(self, path: Path, text: str) -> None:
        """Write what the daemon can do without; a full disk must not keep it from supervising what runs."""
        try:
            write_whole(path, text.encode(), durable=True)
        except OSError as error:
            self.set_aside.append(SetAside(path, f"cannot be written: {error.strerror}"))

    def load_fleet(self) -> StoredFleet | None:
        """Return the fleet that was applied last; None where there is none (or it had to be set aside)."""
        return self._load(self.root / "fleet.json", StoredFleet, lambda stored: absurd_fleet(stored.fleet))

    def save_fleet(self, stored: StoredFleet) -> None:
        """Keep a fleet, durably."""
        write_whole(self.root / "fleet.json", encoded(stored), durable=True)

    def load_gpus(self) -> StoredGpus:
        """Return which GPUs are out of service; none where that was never written or cannot be read."""
        return self._load(self.root / "gpus.json", StoredGpus) or StoredGpus(version=VERSION)

    def save_gpus(self, stored: StoredGpus) -> None:
        """Keep which GPUs are out of service, durably."""
        write_whole(self.root / "gpus.json", encoded(stored), durable=True)

    def load_operations(self) -> StoredOperations:
        """Return the commands that were under way; none where nothing was written."""
        return self._load(self.root / "operations.json", StoredOperations) or StoredOperations(version=VERSION, count=0)

    def save_operations(self, stored: StoredOperations) -> None:
        """Keep the commands under way for the next daemon life, not for the next boot."""
        write_whole(self.root / "operations.json", encoded(stored), durable=False)

    def load_workers(self) -> dict[str, StoredWorker]:
        """Return every worker's record by name."""
        stored = {}
        for path in sorted((self.root / "workers").glob("*/*.json")):
            name = worker_named(path.parent.name, path.stem)
            record = self._load(path, StoredWorker, _is_of(name)) if name is not None else None
            if name is not None and record is not None:
                stored[name] = record
        return stored

    def save_worker(self, worker: Worker, boot_id: str, *, durable: bool) -> None:
        """Keep a worker's record; ``durable`` for what must survive a power cut (what the operator wants)."""
        path = self.root / "workers" / f"{worker.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        record = StoredWorker(version=VERSION, boot_id=boot_id, worker=worker)
        write_whole(path, encoded(record), durable=durable)

    def save_goal(self, worker: Worker) -> None:
        """Keep what the operator wants of a worker, durably: a file of its own, written over in place.

        It exists since the worker was new, so that a command keeps its word on a disk that has become full since.
        """
        path = self.root / "workers" / f"{worker.name}.goal"
        path.parent.mkdir(parents=True, exist_ok=True)
        known = path.exists()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            os.pwrite(fd, f"{worker.goal:<4}\n".encode(), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        if not known:
            path.with_suffix(".down").unlink(missing_ok=True)  # of versions before 0.2: an empty mark

    def goals(self) -> dict[str, Goal]:
        """What the operator wants of each worker, whatever has become of its record."""
        goals: dict[str, Goal] = {}
        for path in sorted((self.root / "workers").glob("*/*"), key=lambda path: path.suffix):
            name = worker_named(path.parent.name, path.stem)
            if name is not None and path.suffix == ".down":
                goals[name] = Goal.DOWN
            elif name is not None and path.suffix == ".goal":
                with suppress(ValueError):
                    goals[name] = Goal((self._content(path, WORD_MAX_BYTES) or b"").decode().strip())
        return goals

    def add_run(self, worker: str, record: RunRecord, keep: int) -> None:
        """Keep the record of an ended run, and only the newest ``keep``."""
        directory = self.root / "history" / worker
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / f"{record.run:08d}.json", encoded(record), durable=False)
        for path in sorted(directory.glob("*.json"))[:-keep]:
            path.unlink(missing_ok=True)

    def add_step(self, worker: str, run: int, step: LadderStep) -> None:
        """Note in the record of an ended run what was lowered after it; nothing where there is no such record."""
        path = self.root / "history" / worker / f"{run:08d}.json"
        record = self._load(path, RunRecord)
        if record is not None:
            write_whole(path, encoded(structs.replace(record, step=step)), durable=False)

    def amend_exit(self, worker: str, exit_: LastExit) -> None:
        """Put more evidence into the record of an ended run; nothing where there is no such record."""
        path = self.root / "history" / worker / f"{exit_.run:08d}.json"
        record = self._load(path, RunRecord)
        if record is not None:
            write_whole(path, encoded(structs.replace(record, exit=exit_)), durable=False)

    def history(self, worker: str) -> list[RunRecord]:
        """Return the records of ended runs, newest first, whatever numbers earlier versions gave them."""
        paths = sorted((self.root / "history" / worker).glob("*.json"), reverse=True)
        records = [record for path in paths if (record := self._load(path, RunRecord)) is not None]
        return sorted(records, key=lambda record: record.exit.at, reverse=True)

    def forget(self, worker: str, run: int) -> None:
        """Drop what is kept of a worker that left the fleet; its history stays, with the number of its last run."""
        with suppress(OSError):
            (self.root / "history" / worker).mkdir(parents=True, exist_ok=True)
            write_whole(self.root / "history" / worker / COUNTER, f"{run}\n".encode(), durable=True)
        for suffix in (".down", ".goal", ".json"):
            (self.root / "workers" / f"{worker}{suffix}").unlink(missing_ok=True)
        with suppress(OSError):
            (self.root / "workers" / worker).parent.rmdir()

    def _load(self, path: Path, kind: type[Record], absurd: Callable[[Record], str] = lambda _: "") -> Record | None:
        """Return a record; None where there is none that can be used. ``absurd`` says why one cannot be true."""
        text = self._content(path, RECORD_MAX_BYTES)
        if text is None:
            return None
        try:
            record = decoded(text, kind)
            reason = absurd_number(record) or absurd(record)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            reason = str(error)
        if reason:
            self._put_aside(path, reason)
            return None
        return record

    def _content(self, path: Path, max_bytes: int) -> bytes | None:
        try:
            return read_regular(path, max_bytes)
        except FileNotFoundError:
            return None
        except (NoRecord, IsADirectoryError) as error:
            self._put_aside(path, f"{error.strerror}")
        except OSError as error:
            self.set_aside.append(SetAside(path, f"cannot be read: {error.strerror}"))
        return None

    def _put_aside(self, path: Path, reason: str) -> None:
        number = 1
        while (target := path.with_name(f"{path.name}.broken-{number}")).exists():
            number += 1
        with suppress(OSError):
            path.rename(target)
        self.set_aside.append(SetAside(target, f"this is {path.name}, which could not be used: {reason}"))


def _is_of(name: str) -> Callable[[StoredWorker], str]:
    def absurd(stored: StoredWorker) -> str:
        one = stored.worker
        is_so = one.name == name == f"{one.pool}/{one.index}"
        return (
            "" if is_so else f"it is of worker {one.index} of pool {one.pool!r}, called {one.name!r}, and not of {name}"
        )

    return absurd
