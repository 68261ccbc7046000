"""Who a peer is and what that user may."""

from __future__ import annotations

import grp
import os

import pytest

from gpuward.control.roles import Peer, Role, Roles, parse_peer_address


@pytest.mark.parametrize(
    ("address", "known"),
    [
        ("localhost:0:0:22972", (0, 22972)),
        ("host:1000:1000:1", (1000, 1)),
        ("fe80::1:1000:100:7", (1000, 7)),
        (":1000:1000:7", (1000, 7)),
        ("host:1000:1000:0", (1000, 0)),
        ("", None),
        ("localhost", None),
        ("0:0:1", None),
        ("host:-1:0:1", None),
        ("host::0:1", None),
        ("host:0:0:", None),
        ("host: 0:0:1", None),
        ("host:0x0:0:1", None),
        ("host:0:0:1;uid=0", None),
        ("host:٠:0:1", None),
        ("host:0:0:1\n", None),
    ],
)
def test_an_address_names_its_user_or_nobody(address: str, known: tuple[int, int] | None) -> None:
    assert parse_peer_address(address) == known


@pytest.mark.parametrize("address", [None, b"localhost:0:0:1", 7, "localhost"])
def test_a_peer_that_cannot_be_told_may_only_read(address: object) -> None:
    assert Roles("gpuctl").peer(address) == Peer(None, None, Role.READ)


def test_root_and_the_daemons_own_user_administrate() -> None:
    roles = Roles("gpuctl")

    assert roles.of(0) is roles.of(os.geteuid()) is Role.ADMIN


def test_a_member_of_the_group_operates_and_another_user_reads() -> None:
    group = grp.getgrgid(65534 if _has_group(65534) else grp.getgrall()[-1].gr_gid).gr_name
    member, other = 65534, 54_321

    assert Roles(group).peer(f"localhost:{member}:0:7") == Peer(member, 7, Role.OPERATOR)
    assert Roles(group).of(other) is Role.READ


def test_a_member_of_an_administrators_group_administrates() -> None:
    group = grp.getgrgid(65534 if _has_group(65534) else grp.getgrall()[-1].gr_gid).gr_name

    assert Roles("gpuctl", ("no-such-group", group)).of(65534) is Role.ADMIN


def test_who_is_refused_is_told_whom_to_ask() -> None:
    roles = Roles("operators", ("admins",))

    assert roles.who(Role.ADMIN).endswith("or a member of group admins")
    assert roles.who(Role.OPERATOR).endswith("or a member of group operators or a member of group admins")
    assert (Peer(0, 1, Role.ADMIN).name, Peer(54_321, 1, Role.READ).name) == ("root", "user 54321")


def test_a_group_that_does_not_exist_has_no_members() -> None:
    assert Roles("no-such-group").of(65534) is Role.READ


def _has_group(gid: int) -> bool:
    return any(entry.gr_gid == gid for entry in grp.getgrall())
