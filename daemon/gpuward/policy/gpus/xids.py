"""What the driver's XID error codes mean for a GPU and for the workers on it. Data, and how an operator overrides it.

Meanings and immediate actions are of NVIDIA's XID catalog (docs.nvidia.com/deploy/xid-errors); the classes are ours,
set against what the Kubernetes device plugin, DCGM and GPUd make of the same codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from gpuward.config.host import XidSettings

XidClass = Literal["app", "quarantine", "host", "record"]
"""app: the program's own fault, its end tells. quarantine: the GPU takes no new worker until somebody has looked at it.

host: the same, and only a reboot helps. record: noted, nothing follows.
"""


class Xid(NamedTuple):
    """One code. ``again``: the second within an hour on one GPU counts as quarantine."""

    kind: XidClass
    meaning: str
    again: bool = False


AGAIN_WITHIN_S: Final = 3600.0

XIDS: Final[Mapping[int, Xid]] = {
    8: Xid("app", "the GPU stopped processing a channel"),
    11: Xid("app", "invalid or corrupted push buffer stream"),
    13: Xid("app", "graphics engine exception"),
    25: Xid("app", "invalid or illegal push buffer stream"),
    31: Xid("app", "MMU page fault"),
    32: Xid("app", "bad push buffer", again=True),
    37: Xid("record", "driver firmware error"),
    38: Xid("record", "driver firmware error"),
    39: Xid("app", "copy engine exception"),
    40: Xid("app", "copy engine exception"),
    41: Xid("app", "copy engine exception"),
    43: Xid("app", "channel reset after a program's fault"),
    44: Xid("record", "context switch fault"),
    45: Xid("record", "cleanup after a program that ended"),
    46: Xid("quarantine", "the GPU stopped processing"),
    48: Xid("quarantine", "double-bit ECC error"),
    61: Xid("quarantine", "microcontroller breakpoint or warning"),
    62: Xid("quarantine", "microcontroller halt"),
    63: Xid("record", "a row of memory is to be replaced"),
    64: Xid("quarantine", "a row of memory could not be replaced: the board may need replacement"),
    66: Xid("record", "illegal access by the driver"),
    67: Xid("record", "illegal access by the driver"),
    68: Xid("app", "video decoder exception"),
    69: Xid("app", "graphics engine class error"),
    74: Xid("quarantine", "NVLink error"),
    79: Xid("host", "the GPU has fallen off the bus"),
    92: Xid("record", "many single-bit ECC errors"),
    94: Xid("app", "contained memory error"),
    95: Xid("quarantine", "uncontained memory error"),
    109: Xid("app", "context switch timeout", again=True),
    110: Xid("quarantine", "security fault"),
    119: Xid("host", "the GPU's system processor does not answer: calls of the driver may hang"),
    120: Xid("host", "error of the GPU's system processor: calls of the driver may hang"),
    121: Xid("record", "chip-to-chip link error"),
    136: Xid("quarantine", "link training failed"),
    137: Xid("app", "NVLink privilege error"),
    140: Xid("quarantine", "unrecovered ECC error"),
    141: Xid("record", "unrecovered fault of the fast path"),
    143: Xid("quarantine", "the GPU could not be initialised"),
    152: Xid("record", "deep learning accelerator fault"),
    153: Xid("record", "deep learning accelerator fault"),
    154: Xid("record", "the driver's recovery action has changed"),
    155: Xid("quarantine", "NVLink software error"),
    156: Xid("quarantine", "a resource of the GPU was retired"),
    157: Xid("record", "a retirement failed"),
    158: Xid("quarantine", "fatal timeout"),
    160: Xid("record", "a channel is to be retired"),
    161: Xid("record", "a channel was retired"),
}

_UNKNOWN: Final = Xid("record", "a code that gpuward does not know")
_NVLINK_5: Final = Xid("record", "NVLink 5 error, of which only the recovery action tells how bad it is")


def xid_of(code: int, settings: XidSettings) -> Xid:
    """Return what a code is taken for: as the operator says, else by the table. Unknown codes are recorded.

    For those that are only recorded the driver's own verdict, the recovery action in the samples, decides.
    """
    known = _NVLINK_5 if 144 <= code <= 150 else XIDS.get(code, _UNKNOWN)
    overrides: tuple[tuple[XidClass, tuple[int, ...]], ...] = (
        ("app", settings.app),
        ("quarantine", settings.quarantine),
        ("host", settings.host),
        ("record", settings.record),
    )
    for kind, codes in overrides:
        if code in codes:
            return Xid(kind, known.meaning)
    return known
