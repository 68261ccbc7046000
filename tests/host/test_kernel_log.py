"""XIDs out of the kernel's log, as the driver writes them and /dev/kmsg gives them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gpuward.host.kernel_log import LoggedXid, logged_xids

LOG = """\
6,339,5140900,-;NET: Registered PF_INET6 protocol family
 SUBSYSTEM=net
4,2001,90000000,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python3, GPU has fallen off the bus.
4,2002,90000100,c;NVRM: GPU at PCI:0000:3b:00: GPU-8f2d
3,2003,91000000,-;NVRM: Xid (PCI:0001:AF:00.0): 31, pid='<unknown>', name=<unknown>, Ch 00000008
6,2004,92000000,-;systemd[1]: somebody says NVRM: Xid (PCI:0000:3b:00): 48
"""


def test_xids_are_found_with_place_code_and_time_and_nothing_else_is_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "kmsg").write_text(LOG)
    booted_at = time.time() - time.monotonic()

    first, second = logged_xids(str(tmp_path / "kmsg"))

    assert (first.domain, first.bus, first.device, first.code) == (0, 0x3B, 0, 79)
    assert first.at == pytest.approx(booted_at + 90.0, abs=1.0)
    assert (second.domain, second.bus, second.code) == (1, 0xAF, 31)


def test_a_place_on_the_bus_is_that_of_a_gpu_however_it_is_written() -> None:
    xid = LoggedXid(0, 0x3B, 0, 79, 0.0)

    assert xid.is_of("00000000:3B:00.0")
    assert not xid.is_of("00000001:3B:00.0")
    assert not xid.is_of("00000000:3C:00.0")
    assert not xid.is_of("")


def test_a_log_that_may_not_be_read_is_an_error_not_silence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        logged_xids(str(tmp_path / "missing"))


def test_reading_never_waits_for_the_next_message(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "kmsg")
    writer = os.open(tmp_path / "kmsg", os.O_RDWR)
    os.write(writer, LOG.encode())

    found = logged_xids(str(tmp_path / "kmsg"))

    os.close(writer)
    assert [xid.code for xid in found] == [79, 31]
