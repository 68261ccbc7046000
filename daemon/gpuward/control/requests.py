"""Requests as the daemon decodes them: one record per operation of `protocol`, checked strictly."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from gpuward.control.protocol import PROTOCOL_VERSION

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Directory = Annotated[str, Meta(pattern="^/[^\\x00]*$", max_length=4096)]
MAX_TARGETS = 4096
SHOWN_CHARS = 60


class BadRequest(Exception):
    """Not a request of this protocol; ``request_id`` is what could be read of it."""

    def __init__(self, message: str, *, code: str = "bad-request", request_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id


class Args(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all arguments."""


class Nothing(Args, frozen=True):
    """No arguments."""


class FileArgs(Args, frozen=True, kw_only=True):
    """A fleet file as the client read it; ``prune``: applied pools that it does not name are to go."""

    text: str
    name: Name
    directory: Directory
    prune: bool = False


class ApplyArgs(FileArgs, frozen=True, kw_only=True):
    """Apply, only if the applied revision is still the one that the client saw.

    ``force``, here and below: stop also what would not come back, and the last ready worker of a pool. ``dry_run``:
    only say what would be stopped.
    """

    expected_revision: Count | None = None
    force: bool = False


class ReloadArgs(Args, frozen=True, kw_only=True):
    """Apply the file that the daemon was started with."""

    force: bool = False
    dry_run: bool = False


class DiffArgs(Args, frozen=True, kw_only=True):
    """A fleet file as the client read it; none: the one that the daemon was started with."""

    text: str | None = None
    name: Name = "-"
    directory: Directory = "/"
    prune: bool = False


class TargetArgs(Args, frozen=True, kw_only=True):
    """Workers or pools by name, or all."""

    targets: Annotated[tuple[Name, ...], Meta(max_length=MAX_TARGETS)] = ()
    all: bool = False
    force: bool = False
    dry_run: bool = False


class ScaleArgs(Args, frozen=True, kw_only=True):
    """Set the number of workers of a pool."""

    pool: Name
    workers: Annotated[int, Meta(ge=0, le=10_000)]
    force: bool = False
    dry_run: bool = False


class RollArgs(Args, frozen=True, kw_only=True):
    """Restart a pool one worker after the other; with ``file`` it gets what that says of it."""

    pool: Name
    file: FileArgs | None = None
    force: bool = False
    dry_run: bool = False


class OperationArgs(Args, frozen=True, kw_only=True):
    """Wait for news of an operation."""

    id: Name
    seen: Count = 0
    wait_s: Annotated[float, Meta(ge=0, le=30)] = 0.0


class LogsArgs(Args, frozen=True, kw_only=True):
    """A part of a run's log."""

    worker: Name
    run: Count | None = None
    lines: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    offset: Annotated[int, Meta(ge=-1, le=2**53)] | None = None
    max_bytes: Annotated[int, Meta(ge=1, le=1 << 20)] = 1 << 18


class EventsArgs(Args, frozen=True, kw_only=True):
    """Events after a sequence number."""

    since: Count | None = None
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 200
    worker: Name | None = None


class WhyArgs(Args, frozen=True, kw_only=True):
    """One worker."""

    worker: Name


class GpuArgs(Args, frozen=True, kw_only=True):
    """Take a GPU (PCI-order index or UUID) out of service, or back."""

    action: Literal["cordon", "uncordon", "clear"]
    gpu: Count | Name
    reason: Annotated[str, Meta(max_length=1000)] = ""


class InventoryArgs(Args, frozen=True, kw_only=True):
    """Let the driver go, or take it up again."""

    action: Literal["release", "resume"]


class SimArgs(Args, frozen=True, kw_only=True):
    """A fault of a simulated host; ``value``: XID code, seconds, bytes, bytes per second, degrees Celsius, mode."""

    fault: Literal["xid", "lost", "hang", "foreign", "leak", "temperature", "compute-mode", "mig", "clear"]
    gpu: Count | Name | None = None
    value: Annotated[float, Meta(ge=0, le=1e15)] | None = None


ARGS: dict[str, type[Args]] = {
    "ping": Nothing,
    "status": Nothing,
    "plan": FileArgs,
    "diff": DiffArgs,
    "apply": ApplyArgs,
    "reload": ReloadArgs,
    "start": TargetArgs,
    "stop": TargetArgs,
    "restart": TargetArgs,
    "reset": TargetArgs,
    "roll": RollArgs,
    "scale": ScaleArgs,
    "operation": OperationArgs,
    "logs": LogsArgs,
    "events": EventsArgs,
    "why": WhyArgs,
    "gpu": GpuArgs,
    "inventory": InventoryArgs,
    "sim": SimArgs,
    "detach": Nothing,
    "reexec": Nothing,
}


class Request(Struct, frozen=True, kw_only=True):
    """One decoded request."""

    id: str
    op: str
    args: Args


class _Envelope(Struct, frozen=True):
    v: Any = None
    id: Any = None
    op: Any = None
    args: Any = None


_envelope = msgspec.json.Decoder(_Envelope)


def decode_request(frame: bytes) -> Request:
    """Decode one frame; BadRequest says what is wrong with it."""
    try:
        envelope = _envelope.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"cannot read the request: {error}; send one JSON object in one frame") from None
    request_id = envelope.id if isinstance(envelope.id, str) and len(envelope.id) <= 200 else None
    if type(envelope.v) is not int or envelope.v != PROTOCOL_VERSION:
        message = f"cannot speak protocol version {_shown(envelope.v)}: this daemon speaks {PROTOCOL_VERSION}"
        raise BadRequest(message, code="bad-protocol", request_id=request_id)
    if request_id is None:
        raise BadRequest("cannot answer a request whose id is not a string of at most 200 characters")
    kind = ARGS.get(envelope.op) if isinstance(envelope.op, str) else None
    if kind is None:
        known = ", ".join(ARGS)
        raise BadRequest(f"there is no operation {_shown(envelope.op)}; there are {known}", request_id=request_id)
    try:
        args = msgspec.convert(envelope.args if envelope.args is not None else {}, kind, strict=True)
    except msgspec.ValidationError as error:
        raise BadRequest(f"cannot run {envelope.op}: {_where_first(str(error))}", request_id=request_id) from None
    return Request(id=request_id, op=envelope.op, args=args)


def _where_first(complaint: str) -> str:
    """What msgspec says, with the key before the trouble: ``workers: expected int <= 9``."""
    what, at, where = complaint.replace("`", "").rpartition(" - at $")
    if not at:
        return complaint
    return f"{where.removeprefix('.')}: {what[:1].lower()}{what[1:]}"


def _shown(value: object) -> str:
    """Return what somebody sent, short: it may be a megabyte, or nested as deep as the decoder goes."""
    if not isinstance(value, str | int | float | bool | None):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}... ({len(text)} characters)"
