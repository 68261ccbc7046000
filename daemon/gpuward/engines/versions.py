"""Which vLLM an executable would run, told from the files of its environment: nothing is started for it."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Final

from gpuward.config.fleet import Pool
from gpuward.engines import vllm
from gpuward.engines.launch import CannotLaunch, HostContext, Version

SIMULATED: Final[Version] = (0, 32, 0)
"""What the simulated worker stands in for, and says that it is."""

METADATA_BYTES_MAX: Final = 8192
SCRIPT_BYTES_MAX: Final = 512
ENTRIES_MAX: Final = 20_000

_DISTRIBUTION: Final = re.compile(r"vllm(?:[_-](?:cpu|rocm|tpu|xpu))?-[^/-]+\.dist-info", re.IGNORECASE)
_VERSION_LINE: Final = re.compile(rb"^Version: *(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", re.MULTILINE)
_SHEBANG: Final = re.compile(rb"#! *(/[^\0\r\n ]*)")


def version_of(pool: Pool, host: HostContext, env: dict[str, str]) -> Version | None:
    """The vLLM that a worker of this pool would run; None where it is not known, or is no vLLM.

    ``env`` is the worker's environment, in whose PATH the program is looked up.
    """
    if pool.engine == "command":
        return None
    if pool.engine == "simulated" or (host.simulated and pool.executable is None):
        return SIMULATED
    try:
        words, _ = vllm.program(pool, host, env)
    except CannotLaunch:
        return None
    return installed(words[0])


def installed(program: str) -> Version | None:
    """The vLLM in the environment of a ``python`` or ``vllm`` script; None where no file tells."""
    for directory in _binary_directories(Path(program)):
        for packages in _package_directories(directory.parent):
            version = _in_packages(packages)
            if version is not None:
                return version
    return None


def _binary_directories(program: Path) -> list[Path]:
    """Where the program lies, where a link to it leads, and where the interpreter of a script lies; in that order."""
    found = [program.parent, Path(os.path.realpath(program)).parent]
    try:
        with program.open("rb") as file:
            shebang = _SHEBANG.match(file.read(SCRIPT_BYTES_MAX))
    except OSError:
        shebang = None
    if shebang is not None:
        found.insert(1, Path(os.fsdecode(shebang[1])).parent)
    return list(dict.fromkeys(found))


def _package_directories(root: Path) -> list[str]:
    """Directories of packages below the root of an environment (sysconfig's purelib, and Debian's)."""
    patterns = ("lib/python3*/site-packages", "lib64/python3*/site-packages", "lib/python3*/dist-packages")
    try:
        return [str(path) for pattern in patterns for path in sorted(root.glob(pattern))]
    except OSError:
        return []


def _in_packages(directory: str) -> Version | None:
    try:
        return _looked_up(directory, os.stat(directory).st_mtime_ns)  # noqa: PTH116
    except OSError:
        return None


@lru_cache(maxsize=64)
def _looked_up(directory: str, changed_ns: int) -> Version | None:
    """``changed_ns`` moves when a package comes or goes: one that has not moved is not read again."""
    del changed_ns
    with os.scandir(directory) as entries:
        names = [entry.name for entry, _ in zip(entries, range(ENTRIES_MAX), strict=False)]
    versions = [_stated(Path(directory, name, "METADATA")) for name in names if _DISTRIBUTION.fullmatch(name)]
    return max((version for version in versions if version is not None), default=None)


def _stated(metadata: Path) -> Version | None:
    try:
        with metadata.open("rb") as file:
            match = _VERSION_LINE.search(file.read(METADATA_BYTES_MAX))
    except OSError:
        return None
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None
