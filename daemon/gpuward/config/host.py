"""Host settings: what is true of this machine whatever fleet runs on it. Frozen records; keys are hyphenated.

Nothing here reads a file or checks a range; `decode` does.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

MIB = 1024 * 1024


DEFAULT_GROUP = "gpuctl"


class Control(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """The control socket. ``socket`` None: control.sock in the runtime directory.

    Members of ``group`` operate (start, stop, restart), those of one of ``admins`` may do what can run a new program.
    ``others``: whether every user of the host may connect and look.
    """

    socket: str | None = None
    group: str = DEFAULT_GROUP
    admins: tuple[str, ...] = ()
    others: Literal["none", "read"] = "none"
    max_message_bytes: int = 1 * MIB


class Directories(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """Absolute paths; None is the default that the composition root picks for the user it runs as.

    ``runtime`` dies with the machine (sockets, runs, leases), ``state`` survives a reboot, ``logs`` holds worker output
    (None: logs in the state directory), ``leases`` one lock file per GPU (None: where all daemons of the host look).
    """

    runtime: str | None = None
    state: str | None = None
    logs: str | None = None
    leases: str | None = None


class InventorySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """Where GPU facts come from. ``exclude`` names GPUs that no worker may get, by index or UUID; times in seconds."""

    provider: Literal["nvml", "none"] = "nvml"
    exclude: tuple[int | str, ...] = ()
    sample_interval_s: float = 1.0
    deadline_s: float = 10.0


class PortRange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """Ports handed to workers: each gets ``per_worker`` consecutive ones between ``first`` and ``last``.

    Default end below the ephemeral floor of Linux (32768), so that no outgoing connection takes one.
    """

    first: int = 20000
    last: int = 32767
    per_worker: int = 64


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """Bounds. ``claims_per_gpu`` is the largest sum of claims on a shared GPU, a ratio of its total memory."""

    claims_per_gpu: float = 1.0
    memory_margin_bytes: int = 256 * MIB
    release_timeout_s: float = 60.0
    log_max_bytes: int = 64 * MIB
    log_keep_runs: int = 5


class WatchSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """When a worker's memory is noteworthy. Ratios are of a GPU's total; the larger slack of the two counts.

    A signal needs ``samples`` in a row. ``action_pause_s``: least time between two actions on one GPU.
    """

    slack_bytes: int = 2048 * MIB
    slack_ratio: float = 0.03
    growth_bytes: int = 2048 * MIB
    pressure_ratio: float = 0.02
    samples: int = 3
    action_pause_s: float = 600.0


class XidSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """XID codes that are to be taken for something else than the table in `policy.gpus.xids` says."""

    app: tuple[int, ...] = ()
    quarantine: tuple[int, ...] = ()
    host: tuple[int, ...] = ()
    record: tuple[int, ...] = ()


class EndpointSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """Where the ready workers are listed for proxies; ``directory`` None: nowhere.

    ``on_change`` is run after each change of a file. A worker that is to stop gets its SIGTERM ``settle_s`` after that.
    """

    directory: str | None = None
    on_change: tuple[str, ...] = ()
    settle_s: float = 1.0


class Logging(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """The daemon's own log. ``format`` auto: fields where it goes to the journal, pretty on a terminal, else JSON."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "journal", "json", "console"] = "auto"


class SignatureRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """A text in a worker's output that tells why it ended, looked for before those that gpuward knows.

    ``contains`` stands in the line; ``pattern``, where given, is searched in it and its named groups fill ``says`` and
    ``hint``. ``permanent``: a new start ends the same way.
    """

    cause: Literal[
        "gpu-oom-startup",
        "gpu-oom-runtime",
        "kv-cache-too-small",
        "gpu-busy",
        "profiling-race",
        "host-oom",
        "cuda-fault",
        "gpu-hardware",
        "port-conflict",
        "config-error",
        "hang",
        "start-timeout",
        "crash",
    ]
    contains: str
    says: str
    pattern: str | None = None
    hint: str = ""
    permanent: bool = False
    phase: Literal["any", "starting", "ready"] = "any"


class HostSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """The whole host file."""

    control: Control = field(default_factory=Control)
    directories: Directories = field(default_factory=Directories)
    inventory: InventorySettings = field(default_factory=InventorySettings)
    ports: PortRange = field(default_factory=PortRange)
    limits: Limits = field(default_factory=Limits)
    watch: WatchSettings = field(default_factory=WatchSettings)
    xid: XidSettings = field(default_factory=XidSettings)
    endpoints: EndpointSettings = field(default_factory=EndpointSettings)
    logging: Logging = field(default_factory=Logging)
    signatures: tuple[SignatureRule, ...] = ()
