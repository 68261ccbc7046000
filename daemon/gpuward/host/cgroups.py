"""A cgroup of its own for each run, where this host lets us: memory-max is kept there, and OOM kills are counted there.

Two ways. As root outside of systemd: directories beside the daemon's own cgroup, made and limited here. As root under
systemd, to which the tree belongs: a transient scope per run. Never below gpuward.service: with controllers enabled in
groups that workers survive in, systemd cannot start the service again (219/CGROUP, measured on 252).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SLICE = "gpuward.slice"
PROBE_TIMEOUT_S = 10.0
NOT_ROOT = (
    "this daemon is not root, and only root gets scopes from systemd; groups below gpuward.service would keep it from "
    "starting again (219/CGROUP)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """The cgroup of one run: its directory, and the command that makes it around the keeper, where it is a scope."""

    path: Path
    wrapper: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What decides how cgroups are had here. ``proc`` is /proc/self or a stand-in."""

    proc: Path
    root: bool
    systemd: bool

    @staticmethod
    def this() -> Host:
        """This machine and process; sd_booted(3) tells whether systemd runs it."""
        return Host(proc=Path("/proc/self"), root=os.geteuid() == 0, systemd=Path("/run/systemd/system").is_dir())


class Cgroups:
    """Where runs get their cgroups. ``refusal`` says why they get none, empty where they do."""

    def __init__(self, base: Path | None = None, *, refusal: str = "", scope: tuple[str, ...] = ()) -> None:
        self.refusal = refusal
        self._base = base
        self._scope = scope

    def seat(self, worker: str, run: int, memory_max_bytes: int | None) -> Seat | None:
        """The cgroup for a run that is about to start; OSError where the kernel does not let us make it."""
        if self._base is None:
            return None
        name = f"{worker.replace('/', '.')}."
        if self._scope:
            unit = f"{self._base.name.removesuffix('.slice')}-{name}{run}.scope"
            limit = ("-p", f"MemoryMax={memory_max_bytes}") if memory_max_bytes is not None else ()
            return Seat(path=self._base / unit, wrapper=(*self._scope, *limit, f"--unit={unit}", "--"))
        for old in self._base.glob(f"{name}*"):
            with suppress(OSError):
                old.rmdir()  # of a run whose keeper was lost; one that is not empty stays
        path = self._base / f"{name}{run}"
        path.mkdir(exist_ok=True)
        (path / "memory.max").write_text("max" if memory_max_bytes is None else str(memory_max_bytes))
        (path / "memory.oom.group").write_text("1")  # half a worker is of no use; the keeper sits outside
        return Seat(path=path)


def find_cgroups(host: Host, instance: str) -> Cgroups:
    """Find out how runs get cgroups here; ``instance`` keeps the groups of several daemons apart."""
    mount = _cgroup2_mount(host.proc)
    if mount is None:
        return Cgroups(refusal="no cgroup v2 is mounted here")
    controllers = _words(mount / "cgroup.controllers")
    if "memory" not in controllers:
        listed = ", ".join(controllers) or "none"
        return Cgroups(refusal=f"cgroup v2 has no memory controller here (controllers of {mount}: {listed})")
    if not host.systemd:
        return _beside_us(mount, host.proc, f"gpuward-{instance}")
    if not host.root:
        return Cgroups(refusal=NOT_ROOT)
    return scopes(mount)


def scopes(mount: Path) -> Cgroups:
    """Transient scopes, where systemd makes one for us now."""
    program = shutil.which("systemd-run")
    if program is None:
        return Cgroups(refusal="systemd-run is not installed")
    command = (program, "--scope", "--quiet", "--collect", f"--slice={SLICE}", "-p", "MemoryAccounting=yes")
    # OOMPolicy= of scopes is of systemd 253, and its default there would end the whole scope for one child.
    for scope in ((*command, "-p", "OOMPolicy=continue"), command):
        try:
            probe = subprocess.run(
                [*scope, "--", "true"], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Cgroups(refusal=f"systemd-run does not answer: {error}")
        if probe.returncode == 0:
            return Cgroups(mount / SLICE, scope=scope)
    return Cgroups(refusal=f"systemd makes no scope for us: {probe.stderr.strip()}")


def _beside_us(mount: Path, proc: Path, name: str) -> Cgroups:
    """The nearest place at or above our own cgroup that can give its children the memory controller.

    A cgroup with processes cannot, the root excepted (cgroup-v2.rst, "No Internal Process Constraint").
    """
    own = next((line[3:] for line in (proc / "cgroup").read_text().splitlines() if line.startswith("0::")), "/")
    why = "it is not in this mount"
    for folder in _upwards(mount, mount / own.lstrip("/")):
        base = folder / name
        try:
            _enable_memory(folder)
            base.mkdir(exist_ok=True)
            _enable_memory(base)
        except OSError as error:
            why = f"{folder}: {error.strerror}"
        else:
            return Cgroups(base)
    return Cgroups(refusal=f"no cgroup at or above our own ({own}) can limit memory for its children; {why}")


def _upwards(mount: Path, own: Path) -> Iterator[Path]:
    return (folder for folder in (own, *own.parents) if folder == mount or mount in folder.parents)


def _enable_memory(folder: Path) -> None:
    if "memory" not in _words(folder / "cgroup.subtree_control"):
        (folder / "cgroup.subtree_control").write_text("+memory")


def _cgroup2_mount(proc: Path) -> Path | None:
    for line in (proc / "mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    return None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
