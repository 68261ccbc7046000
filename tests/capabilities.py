"""Rights that a process of root gives up, for tests of what it may not do."""

from __future__ import annotations

import ctypes


def without_the_right_to_kill_others() -> None:
    """Keep everything of root but CAP_KILL (5, capabilities(7)), for good: an exec as root does not bring it back."""
    version, word = 0x20080522, ctypes.c_uint32
    header, sets = (word * 2)(version, 0), (word * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, sets) == 0
    for item in (0, 1, 2):
        sets[item] &= ~(1 << 5)
    assert libc.prctl(24, 5, 0, 0, 0) == 0  # PR_CAPBSET_DROP
    assert libc.capset(header, sets) == 0
