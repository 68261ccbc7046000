"""Who listens where, against real sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from gpuward.host.ports import Listener, Socket, listener, listening, owners, reached

LISTEN_IN_CHILD = """
import socket, sys
held = socket.socket(); held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
held.bind(("127.0.0.1", int(sys.argv[1]))); held.listen()
print(held.getsockname()[1], flush=True); sys.stdin.read()
"""


def a_socket(address: str = "127.0.0.1") -> socket.socket:
    held = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    held.bind((address, 0))
    held.listen()
    return held


@pytest.fixture
def child() -> Iterator[tuple[int, int]]:
    """Pid and port of another process that listens."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", LISTEN_IN_CHILD, "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    yield process.pid, int(process.stdout.readline())
    process.communicate()


def test_nobody_listens_on_a_port_that_is_only_bound() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))

        assert listener(bound.getsockname()[1]) is None


def test_the_listener_is_named() -> None:
    with a_socket() as held:
        found = listener(held.getsockname()[1])

    assert found is not None
    assert found.pid == os.getpid()
    assert found.name


def test_a_listener_in_another_process_is_found(child: tuple[int, int]) -> None:
    pid, port = child

    found = listener(port)

    assert found is not None
    assert found.pid == pid
    assert isinstance(found, Listener)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_the_address_is_told_for_both_families(address: str) -> None:
    try:
        held = a_socket(address)
    except OSError:
        pytest.skip("no IPv6 here")

    with held:
        port = held.getsockname()[1]
        (found,) = listening(port)

    assert (found.address, found.port, found.uid) == (address, port, os.getuid())


def test_an_ipv4_address_inside_ipv6_is_told_as_ipv4() -> None:
    try:
        held = a_socket("::ffff:127.0.0.1")
    except OSError:
        pytest.skip("no IPv6 here")

    with held:
        (found,) = listening(held.getsockname()[1])

    assert found.address == "127.0.0.1"


def test_all_listeners_of_the_host_are_listed(child: tuple[int, int]) -> None:
    with a_socket() as held:
        ports = {found.port for found in listening()}

        assert {held.getsockname()[1], child[1]} <= ports


def test_a_socket_that_nobody_asked_about_holds_is_left_out(child: tuple[int, int]) -> None:
    sockets = listening(child[1])

    assert owners(sockets, [os.getpid()]) == {}
    assert owners(sockets, [os.getpid(), child[0]]) == {sockets[0].inode: child[0]}


def test_a_process_that_is_gone_owns_nothing() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()

    assert owners([Socket("127.0.0.1", 1, 0, 1)], [gone.pid]) == {}


LOOPBACK, ANY4, ANY6, OTHER = (
    Socket(address, 8000, 0, inode) for inode, address in enumerate(("127.0.0.1", "0.0.0.0", "::", "10.0.0.1"))
)


@pytest.mark.parametrize(
    ("sockets", "address", "expected"),
    [
        ((ANY4, LOOPBACK, ANY6), "127.0.0.1", (LOOPBACK,)),
        ((ANY6, ANY4, OTHER), "127.0.0.1", (ANY4,)),
        ((ANY6, OTHER), "127.0.0.1", (ANY6,)),
        ((ANY4, ANY6), "::1", (ANY6,)),
        ((OTHER,), "127.0.0.1", ()),
        ((LOOPBACK, LOOPBACK), "127.0.0.1", (LOOPBACK, LOOPBACK)),
    ],
)
def test_a_connection_ends_at_the_closest_listener(
    sockets: tuple[Socket, ...], address: str, expected: tuple[Socket, ...]
) -> None:
    assert reached(sockets, address) == expected
