"""What survives the daemon: the applied fleet, each worker's record, the history of its runs, the epoch.

One file each below the state directory, written whole by rename. A file that cannot be read is set aside (renamed to
``*.broken-N``) and reported; it never keeps the daemon from supervising what runs. Decides nothing.
"""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from gpuward.config.fleet import Fleet
from gpuward.policy.life import LastExit, Worker

VERSION = 1
"""Format of every file here; a file of another version is set aside."""

Record = TypeVar("Record")


class StoredFleet(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet that was applied last. ``source`` is the file's name, ``digest`` the SHA-256 of its text."""

    version: int
    revision: int
    source: str
    digest: str
    applied_at: float
    fleet: Fleet


class StoredWorker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker and the boot that its monotonic times belong to."""

    version: int
    boot_id: str
    worker: Worker


class MemorySample(msgspec.Struct, frozen=True, kw_only=True):
    """What a run's GPUs held at one moment (wall time); bytes by GPU UUID, used by the run, free for anybody."""

    at: float
    used_bytes: dict[str, int]
    free_bytes: dict[str, int | None]


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One ended run, for ``gpuctl why``; ``ended_at`` is wall time, memory in bytes per GPU UUID."""

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
    samples: tuple[MemorySample, ...] = ()


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
        """Count this daemon life; 1 is the first."""
        path = self.root / "epoch"
        try:
            epoch = int(path.read_text()) + 1
        except (OSError, ValueError):
            epoch = 1
        write_whole(path, f"{epoch}\n".encode(), durable=True)
        return epoch

    def instance(self) -> str:
        """An identifier of this state directory: marks processes as ours beside another daemon's."""
        path = self.root / "instance"
        with suppress(OSError):
            if known := path.read_text().strip():
                return known
        made = secrets.token_hex(6)
        write_whole(path, f"{made}\n".encode(), durable=True)
        return made

    def load_fleet(self) -> StoredFleet | None:
        """Return the fleet that was applied last; None where there is none (or it had to be set aside)."""
        return self._load(self.root / "fleet.json", StoredFleet)

    def save_fleet(self, stored: StoredFleet) -> None:
        """Keep a fleet, durably."""
        write_whole(self.root / "fleet.json", msgspec.json.encode(stored), durable=True)

    def load_workers(self) -> dict[str, StoredWorker]:
        """Return every worker's record by name."""
        stored = {}
        for path in sorted((self.root / "workers").glob("*/*.json")):
            record = self._load(path, StoredWorker)
            if record is not None:
                stored[record.worker.name] = record
        return stored

    def save_worker(self, worker: Worker, boot_id: str, *, durable: bool) -> None:
        """Keep a worker's record; ``durable`` for what must survive a power cut (what the operator wants)."""
        path = self.root / "workers" / f"{worker.name}.json"
        path.parent.mkdir(exist_ok=True)
        record = StoredWorker(version=VERSION, boot_id=boot_id, worker=worker)
        write_whole(path, msgspec.json.encode(record), durable=durable)

    def add_run(self, worker: str, record: RunRecord, keep: int) -> None:
        """Keep the record of an ended run, and only the newest ``keep``."""
        directory = self.root / "history" / worker
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / f"{record.run:08d}.json", msgspec.json.encode(record), durable=False)
        for path in sorted(directory.glob("*.json"))[:-keep]:
            path.unlink(missing_ok=True)

    def history(self, worker: str) -> list[RunRecord]:
        """Return the records of ended runs, newest first."""
        paths = sorted((self.root / "history" / worker).glob("*.json"), reverse=True)
        return [record for path in paths if (record := self._load(path, RunRecord)) is not None]

    def forget(self, worker: str) -> None:
        """Drop what is kept of a worker that left the fleet; its history stays until its name is used again."""
        (self.root / "workers" / f"{worker}.json").unlink(missing_ok=True)
        with suppress(OSError):
            (self.root / "workers" / worker).parent.rmdir()

    def clear_history(self, worker: str) -> None:
        """Drop the history of a worker."""
        shutil.rmtree(self.root / "history" / worker, ignore_errors=True)

    def _load(self, path: Path, kind: type[Record]) -> Record | None:
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.set_aside.append(SetAside(path, f"cannot be read: {error.strerror}"))
            return None
        try:
            version = msgspec.json.decode(text, type=_Versioned).version
            if version != VERSION:
                raise msgspec.ValidationError(f"has version {version}, this gpuward reads {VERSION}")
            return msgspec.json.decode(text, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._put_aside(path, str(error))
            return None

    def _put_aside(self, path: Path, reason: str) -> None:
        number = 1
        while (target := path.with_name(f"{path.name}.broken-{number}")).exists():
            number += 1
        with suppress(OSError):
            path.rename(target)
        self.set_aside.append(SetAside(target, reason))


class _Versioned(msgspec.Struct):
    version: int


def write_whole(path: Path, content: bytes, *, durable: bool) -> None:
    """Write a file so that a reader, or the next boot, finds the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
    try:
        os.write(fd, content)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)
    if durable:
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
