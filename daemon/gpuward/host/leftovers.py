"""What runs leave behind: their trees as they were seen last, orphans that came to this process, who still lives.

A keeper that is killed can tell nothing, and a descendant may have left its session and its environment. It is found
all the same: by what was seen of the tree while the keeper lived, by the run's cgroup, and because orphans come to the
nearest subreaper, this process. Signals nobody and decides nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from gpuward.host.processes import Identity, alive, boot_id, command_line, describe, stat_fields, state_of
from gpuward.policy.worker.lingering import Left


def trees(roots: Iterable[int]) -> dict[int, tuple[Identity, ...]]:
    """All descendants of each of these processes, from one look at the process table."""
    below: dict[int, list[Identity]] = {}
    for pid in psutil.pids():
        if fields := stat_fields(pid):
            below.setdefault(int(fields[1]), []).append(Identity(boot_id(), pid, int(fields[19])))
    return {root: _below(root, below) for root in roots}


def _below(root: int, below: Mapping[int, list[Identity]]) -> tuple[Identity, ...]:
    found: list[Identity] = []
    waiting = [root]
    while waiting:
        children = below.get(waiting.pop(), [])
        found += children
        waiting += [child.pid for child in children]
    return tuple(found)


def still_alive(identities: Iterable[Identity]) -> set[int]:
    """The pids of those that still exist and are no zombies."""
    return {identity.pid for identity in identities if alive(identity)}


def orphans(runs: Path) -> set[int]:
    """Children of this process that a lost keeper left: outside of our session, and no keeper of a run below ``runs``.

    Our own commands stay in our session. For the thread that starts keepers: between two of them none is half made.
    Not from /proc/PID/task/TID/children, which leaves some out while others end (proc(5)).
    """
    me, ours = os.getpid(), os.getsid(0)
    prefix = os.fsencode(f"{runs}/")
    found = set()
    for pid in psutil.pids():
        fields = stat_fields(pid)
        if fields and int(fields[1]) == me and int(fields[3]) != ours and not command_line(pid)[-1].startswith(prefix):
            found.add(pid)
    return found


def in_cgroup(path: str) -> set[int]:
    """The processes of a run's own cgroup; none where it has none."""
    try:
        return {int(word) for word in Path(path, "cgroup.procs").read_text().split()} if path else set()
    except (OSError, ValueError):
        return set()


def who(pids: Iterable[int]) -> tuple[Left, ...]:
    """What can be said of those of these processes that live."""
    left = []
    for pid in sorted(pids):
        state, about = state_of(pid), describe(pid)
        if about is not None and state not in {"", "Z", "X"}:
            left.append(Left(pid=pid, name=about.name, state=state, user=about.user))
    return tuple(left)
