"""Who asks, and what that user may: from the credentials that the kernel gives of the other end of a socket."""

from __future__ import annotations

import grp
import os
import pwd
import time
from dataclasses import dataclass, field
from enum import IntEnum

KNOWN_FOR_S = 10.0
"""A group that somebody has joined or left counts after this long."""


class Role(IntEnum):
    """What a peer may do; each includes those before it."""

    READ = 1
    OPERATOR = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Peer:
    """Who sent a message, by SO_PEERCRED; None where the kernel did not say."""

    uid: int | None
    pid: int | None
    role: Role


@dataclass(slots=True)
class Roles:
    """Peer credentials -> role: root and the daemon's user administrate, members of ``group`` operate, others read."""

    group: str
    _known: dict[int, tuple[Role, float]] = field(default_factory=dict)

    def peer(self, address: object) -> Peer:
        """Return who has this ``Peer-Address``; whoever cannot be told may only read."""
        known = parse_peer_address(address) if isinstance(address, str) else None
        if known is None:
            return Peer(None, None, Role.READ)
        return Peer(known[0], known[1], self.of(known[0]))

    def of(self, uid: int) -> Role:
        """Return the role of a user."""
        if uid in {0, os.geteuid()}:
            return Role.ADMIN
        now_s = time.monotonic()
        role, until_s = self._known.get(uid, (Role.READ, now_s))
        if now_s >= until_s:
            role = Role.OPERATOR if self._is_member(uid) else Role.READ
            self._known[uid] = (role, now_s + KNOWN_FOR_S)
        return role

    def _is_member(self, uid: int) -> bool:
        try:
            user = pwd.getpwuid(uid)
            gid = grp.getgrnam(self.group).gr_gid
        except KeyError:
            return False
        return gid in os.getgrouplist(user.pw_name, user.pw_gid)


def parse_peer_address(address: str) -> tuple[int, int] | None:
    """Return (uid, pid) of ``HOST:UID:GID:PID`` as libzmq gives it for ipc; None for anything else."""
    parts = address.rsplit(":", 3)
    if len(parts) != 4 or not all(part.isascii() and part.isdecimal() for part in parts[1:]):
        return None
    return int(parts[1]), int(parts[3])
