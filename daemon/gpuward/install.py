"""``gpuward install --systemd``: the unit, users, directories and example configs in place, and gone again.

What is written is remembered by content in ``etc/gpuward/.installed``; a file that somebody has changed since is theirs
and is neither overwritten nor removed. No command is run: what is to follow is printed.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

UNIT = "etc/systemd/system/gpuward.service"
ENABLED = "etc/systemd/system/multi-user.target.wants/gpuward.service"
"""The link that `systemctl enable` makes."""

CONFIG = "etc/gpuward"
REMEMBERED = f"{CONFIG}/.installed"
SHIPPED: Mapping[str, str] = {
    UNIT: "systemd/gpuward.service",
    "etc/sysusers.d/gpuward.conf": "systemd/gpuward.sysusers.conf",
    "etc/tmpfiles.d/gpuward.conf": "systemd/gpuward.tmpfiles.conf",
    f"{CONFIG}/gpuward.toml": "etc/gpuward.toml",
    f"{CONFIG}/fleet.toml": "etc/fleet.toml",
    f"{CONFIG}/dynamo.yaml": "etc/dynamo.yaml",
}
"""Where each file goes below the prefix, and where it comes from."""

_PROGRAM_IN_UNIT = "ExecStart=/usr/bin/gpuward run"
_FIT_FOR_A_UNIT = re.compile(r"/[\w/.+@~-]+")

Action = Literal["installed", "replaced", "unchanged", "kept", "removed", "absent"]


class CannotInstall(Exception):
    """Nothing more was done; the message says what cannot be done and the way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What happens to one file, with the new content where one is written."""

    path: Path
    action: Action
    why: str = ""
    content: bytes | None = None

    def __str__(self) -> str:
        return f"{self.action:<10} {self.path}" + (f" ({self.why})" if self.why else "")


def shipped_files() -> Path:
    """The folder that holds ``systemd/`` and ``etc/``: of the installed package, or of the tree it is edited in."""
    package = Path(__file__).parent
    for folder in (package / "share", package.parents[1]):
        if (folder / "systemd/gpuward.service").is_file():
            return folder
    raise CannotInstall(f"cannot find the files to install: neither {package / 'share'} nor a source tree holds them")


def own_program(called_as: str) -> Path:
    """The gpuward program that a unit can start: as it was called, else of this interpreter's environment."""
    for candidate in (Path(called_as), Path(sysconfig.get_path("scripts")) / "gpuward"):
        if candidate.name == "gpuward" and candidate.is_absolute() and os.access(candidate, os.X_OK):
            return candidate
    raise CannotInstall("cannot tell which program the unit is to start: call gpuward by its absolute path")


def contents(share: Path, program: Path) -> dict[str, bytes]:
    """What is to be installed, by path below the prefix; the unit starts ``program``."""
    if not _FIT_FOR_A_UNIT.fullmatch(str(program)):
        raise CannotInstall(
            f"cannot name {program} in a unit: install gpuward where no path has blanks, quotes, % or $"
        )
    files = {path: (share / source).read_bytes() for path, source in SHIPPED.items()}
    ours = f"ExecStart={program} run"
    files[UNIT] = files[UNIT].replace(_PROGRAM_IN_UNIT.encode(), ours.encode())
    return files


def plan_install(root: Path, files: Mapping[str, bytes]) -> tuple[Step, ...]:
    """Say what installing would do to each file."""
    remembered = _remembered(root)
    return tuple(_install_step(root / path, content, remembered.get(path, ())) for path, content in files.items())


def plan_uninstall(root: Path, files: Mapping[str, bytes]) -> tuple[Step, ...]:
    """Say what uninstalling would do to each file: gone is what is as it was installed."""
    remembered = _remembered(root)
    steps = [_uninstall_step(root / path, content, remembered.get(path, ())) for path, content in files.items()]
    if (root / ENABLED).is_symlink():
        steps.append(Step(path=root / ENABLED, action="removed", why="what systemctl enable had made"))
    if (root / REMEMBERED).exists():
        steps.append(Step(path=root / REMEMBERED, action="removed"))
    return tuple(steps)


def install(root: Path, files: Mapping[str, bytes], steps: Iterable[Step]) -> None:
    """Perform what `plan_install` said. What is ours is written down first: a crash never makes it look like theirs."""
    writing = [step for step in steps if step.content is not None]
    if writing:
        _remember(root, files)
    for step in writing:
        assert step.content is not None
        _write(step.path, step.content)


def uninstall(root: Path, steps: Iterable[Step]) -> None:
    """Perform what `plan_uninstall` said, and remove the directories that are empty then."""
    for step in steps:
        if step.action == "removed":
            try:
                step.path.unlink()
            except OSError as error:
                raise _refused("remove", step.path, error) from None
    for step in steps:
        for folder in _empty_parents(root, step.path):
            folder.rmdir()


def unreachable(program: Path) -> str:
    """Say which directory would keep the user gpuward from the program or its interpreter; empty where none does."""
    for path in (program, Path(sys.executable).resolve(), Path(__file__)):
        for parent in path.parents:
            if not parent.stat().st_mode & 0o001:
                return f"{parent} is closed to other users: the service, as user gpuward, cannot reach {path}"
    return ""


def next_commands(steps: Iterable[Step], root: Path, *, uninstalling: bool) -> tuple[str, ...]:
    """What an administrator does next; nothing where nothing was done."""
    done = {step.path: step.action for step in steps if step.action in {"installed", "replaced", "removed"}}
    if not done:
        return ()
    if uninstalling:
        return (
            "systemctl stop gpuward && systemctl daemon-reload",
            "rm -r /var/lib/gpuward /var/log/gpuward /var/cache/gpuward   # state and logs were left",
            "userdel gpuward; groupdel gpuctl",
        )
    edit = f"edit {root / CONFIG / 'fleet.toml'}   # an example; gpuctl plan FILE shows what it would do here"
    upgraded = done.get(root / UNIT) == "replaced"
    return (
        *([] if upgraded else [edit]),
        "systemd-sysusers gpuward.conf",
        "systemd-tmpfiles --create gpuward.conf",
        "systemctl daemon-reload",
        "systemctl restart gpuward   # workers go on" if upgraded else "systemctl enable --now gpuward",
    )


def _install_step(path: Path, content: bytes, remembered: Iterable[str]) -> Step:
    there = _read(path)
    if there is None:
        return Step(path=path, action="installed", content=content)
    if there == content:
        return Step(path=path, action="unchanged")
    if _sum(there) in remembered:
        return Step(path=path, action="replaced", why="was as installed by an earlier gpuward", content=content)
    return Step(path=path, action="kept", why="changed here, not overwritten")


def _uninstall_step(path: Path, content: bytes, remembered: Iterable[str]) -> Step:
    there = _read(path)
    if there is None:
        return Step(path=path, action="absent")
    if there == content or _sum(there) in remembered:
        return Step(path=path, action="removed")
    return Step(path=path, action="kept", why="changed here, not removed")


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refused("read", path, error) from None


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _remembered(root: Path) -> dict[str, set[str]]:
    """Sums of everything that was ever installed, by path; lines of ``SUM  PATH`` as sha256sum writes them."""
    sums: dict[str, set[str]] = {}
    for line in (_read(root / REMEMBERED) or b"").decode(errors="replace").splitlines():
        digest, _, path = line.partition("  ")
        sums.setdefault(path, set()).add(digest)
    return sums


def _remember(root: Path, files: Mapping[str, bytes]) -> None:
    sums = _remembered(root)
    for path, content in files.items():
        sums.setdefault(path, set()).add(_sum(content))
    lines = [f"{digest}  {path}\n" for path, digests in sums.items() for digest in sorted(digests)]
    _write(root / REMEMBERED, "".join(lines).encode())


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise _refused("write", path, error) from None


def _refused(what: str, path: Path, error: OSError) -> CannotInstall:
    way_out = "; run it as root, or with --prefix DIR" if isinstance(error, PermissionError) else ""
    return CannotInstall(f"cannot {what} {path}: {error.strerror}{way_out}")


def _empty_parents(root: Path, path: Path) -> Iterable[Path]:
    """Directories that only we needed: of the host itself, only our own; of a staged tree, all below its root."""
    for parent in path.parents:
        ours = parent == root / CONFIG or root != Path("/")
        if parent == root or not ours or not parent.is_dir() or any(parent.iterdir()):
            return
        yield parent
