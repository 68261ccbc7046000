"""What one start of a worker needs, as records. Nothing here starts anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gpuward.host.address import Readiness

Version = tuple[int, int, int]
"""Of an engine: major, minor, patch."""


class CannotLaunch(Exception):
    """This worker cannot be started as configured; the message is a sentence with the way out.

    ``kind``: launch, or pin where only the GPUs of this moment are in the way.
    """

    def __init__(self, message: str, kind: str = "launch") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One start of a worker.

    ``argv[0]`` is a path, not a name to be looked up. ``env`` is the complete environment, it may hold secrets.
    ``port`` is the port that the worker was given, None where it has none. ``sockets_variable`` names a
    directory of the run's own in which the engine makes sockets; empty where it makes none or the pool names one.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    working_directory: str | None
    port: int | None
    readiness: Readiness
    sockets_variable: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """A device set in rank order: PCI-order indices as they are now, and the UUIDs of the same GPUs."""

    indices: tuple[int, ...] = ()
    uuids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostContext:
    """What every start on this host shares.

    ``python`` is the absolute path of the interpreter that has gpuward. ``sim_env`` tells workers of a simulated host
    where its GPUs are; it is empty on a real one.
    """

    python: str
    simulated: bool
    inherited_env: Mapping[str, str] = field(repr=False)
    sim_env: Mapping[str, str] = field(default_factory=dict)
