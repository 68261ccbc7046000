"""XIDs in the kernel's log: what the driver reported while nobody listened to it. Reads; decides nothing."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from typing import Final

_RECORD: Final = re.compile(
    rb"^\d+,\d+,(?P<at_us>\d+),[^;]*;NVRM: Xid \(PCI:"
    rb"(?P<domain>[0-9a-fA-F]+):(?P<bus>[0-9a-fA-F]+):(?P<device>[0-9a-fA-F]+)(?:\.\d)?\): (?P<code>\d+)"
)
"""A record of /dev/kmsg (kernel's Documentation/ABI/testing/dev-kmsg) with a message of the NVIDIA driver."""


@dataclass(frozen=True, slots=True)
class LoggedXid:
    """An XID with the GPU's place on the bus; ``at`` is wall time."""

    domain: int
    bus: int
    device: int
    code: int
    at: float

    def is_of(self, pci_bus_id: str) -> bool:
        """Whether it is of the GPU at this address, as NVML writes it: ``00000000:3B:00.0``."""
        try:
            domain, bus, device = (int(part, 16) for part in pci_bus_id.partition(".")[0].split(":"))
        except ValueError:
            return False
        return (domain, bus, device) == (self.domain, self.bus, self.device)


def logged_xids(path: str = "/dev/kmsg") -> list[LoggedXid]:
    """Return the XIDs of this boot that the kernel still has, oldest first.

    Raises OSError where this user may not read the log (sysctl kernel.dmesg_restrict).
    """
    booted_at = time.time() - time.monotonic()
    matches = (_RECORD.match(line) for line in _content(path).splitlines())
    return [
        LoggedXid(
            int(match["domain"], 16),
            int(match["bus"], 16),
            int(match["device"], 16),
            int(match["code"]),
            booted_at + int(match["at_us"]) / 1e6,
        )
        for match in matches
        if match is not None
    ]


def _content(path: str) -> bytes:
    """Return all there is now; the device gives one record at a time, and EPIPE for one that was overwritten."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    records = []
    try:
        while True:
            try:
                record = os.read(fd, 8192)
            except BrokenPipeError:
                continue
            except BlockingIOError:
                break
            if not record:
                break
            records.append(record)
    finally:
        os.close(fd)
    return b"".join(records)
