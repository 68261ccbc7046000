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

    @property
    def name(self) -> str:
        """The user as people know it."""
        return "an unknown user" if self.uid is None else user_name(self.uid)


@dataclass(slots=True)
class Roles:
    """Peer credentials -> role.

    Root, the daemon's user and members of one of ``admins`` administrate, members of ``group`` operate, others read.
    """

    group: str
    admins: tuple[str, ...] = ()
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
            role = self._by_groups(uid)
            self._known[uid] = (role, now_s + KNOWN_FOR_S)
        return role

    def who(self, role: Role) -> str:
        """Say who has a role, for whoever is refused."""
        daemon = [] if os.geteuid() == 0 else [f"{user_name(os.geteuid())} (the daemon's user)"]
        groups = list(self.admins) if role is Role.ADMIN else [self.group, *self.admins]
        return " or ".join(["root", *daemon, *(f"a member of group {group}" for group in groups)])

    def _by_groups(self, uid: int) -> Role:
        if any(is_member(uid, group) for group in self.admins):
            return Role.ADMIN
        return Role.OPERATOR if is_member(uid, self.group) else Role.READ


def is_member(uid: int, group: str) -> bool:
    """Whether a user is in a group; not where either does not exist."""
    try:
        user = pwd.getpwuid(uid)
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        return False
    return gid in os.getgrouplist(user.pw_name, user.pw_gid)


def user_name(uid: int) -> str:
    """The name of a user, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def parse_peer_address(address: str) -> tuple[int, int] | None:
    """Return (uid, pid) of ``HOST:UID:GID:PID`` as libzmq gives it for ipc; None for anything else."""
    parts = address.rsplit(":", 3)
    if len(parts) != 4 or not all(part.isascii() and part.isdecimal() for part in parts[1:]):
        return None
    return int(parts[1]), int(parts[3])
