"""Facts about processes, against real ones."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from gpuward.host import processes
from gpuward.host.program import program, program_of

FAMILY = "import subprocess,sys; subprocess.Popen(['sh','-c','echo up; read x']); sys.stdin.read()"
"""The child says that it is up: until exec has ended, words and environment of a process are empty in /proc."""


@pytest.fixture
def family() -> Iterator[subprocess.Popen[bytes]]:
    """A marked process in a session of its own, with one child."""
    parent = subprocess.Popen(
        [sys.executable, "-S", "-c", FAMILY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"GPUWARD_WORKER": f"test-{os.getpid()}/0", "PATH": os.environ["PATH"]},
        start_new_session=True,
    )
    assert parent.stdout is not None
    parent.stdout.readline()
    yield parent
    for pid in (*processes.tree(parent.pid), parent.pid):
        os.kill(pid, 9)
    parent.communicate()


def test_a_process_is_identified_by_boot_pid_and_start_time() -> None:
    me = processes.identify(os.getpid())

    assert me is not None
    assert me.boot_id == processes.boot_id()
    assert processes.same(me)
    assert processes.alive(me)
    assert not processes.same(replace(me, start_ticks=me.start_ticks + 1))
    assert not processes.same(replace(me, boot_id="another boot"))


def test_a_zombie_is_the_same_process_but_not_alive() -> None:
    child = subprocess.Popen(["true"])
    identity = processes.identify(child.pid)
    assert identity is not None

    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert processes.same(identity)
    assert not processes.alive(identity)
    child.wait()
    assert not processes.same(identity)
    assert not processes.alive(identity)
    assert processes.identify(child.pid) is None


def test_a_pidfd_opens_for_that_very_process_only(family: subprocess.Popen[bytes]) -> None:
    identity = processes.identify(family.pid)
    assert identity is not None

    fd = processes.open_pidfd(identity)
    impostor = processes.open_pidfd(replace(identity, start_ticks=1))

    assert impostor is None
    assert fd is not None
    assert select.select([fd], [], [], 0)[0] == []
    os.close(fd)


def test_a_pidfd_of_a_process_that_is_gone_is_none() -> None:
    child = subprocess.Popen(["true"])
    identity = processes.identify(child.pid)
    child.wait()
    assert identity is not None

    assert processes.open_pidfd(identity) is None


def test_a_tree_holds_the_descendants_and_not_the_process_itself(family: subprocess.Popen[bytes]) -> None:
    below = processes.tree(family.pid)

    assert len(below) == 1
    assert set(below) < set(processes.tree(os.getpid()))
    assert family.pid not in below


def test_marker_and_session_find_the_whole_family(family: subprocess.Popen[bytes]) -> None:
    everyone = {family.pid, *processes.tree(family.pid)}

    marked = processes.find_marked(f"GPUWARD_WORKER=test-{os.getpid()}/0".encode())
    session = processes.in_session(family.pid)

    assert set(marked) == everyone
    assert set(session) == everyone


def test_a_marker_is_compared_whole(family: subprocess.Popen[bytes]) -> None:
    prefix = f"GPUWARD_WORKER=test-{os.getpid()}/".encode()

    assert processes.find_marked(prefix) == ()


def test_a_description_names_user_program_and_words(family: subprocess.Popen[bytes]) -> None:
    (child,) = processes.tree(family.pid)

    described = processes.describe(child)

    assert described is not None
    assert described.name == "sh"
    assert described.user


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([b"python3.11", b"/opt/x/train.py", b"--api-key", b"sk-1"], "python3.11 train.py"),
        ([b"python3", b"-m", b"vllm.entrypoints", b"--api-key=sk-1"], "python3 -m vllm.entrypoints"),
        ([b"/usr/bin/serve", b"sk-1"], "serve"),
        ([b"VLLM::EngineCore"], "VLLM::EngineCore"),
        ([b"caf\xe9", b"x"], r"caf\xe9"),
        ([b"a\x1b]0;t\x07\xe2\x80\xaeb", b"x"], r"a\x1b]0;t\x07\u202eb"),
        ([b"y" * 5000, b"x"], "y" * 197 + "..."),
        ([b""], ""),
    ],
)
def test_a_program_is_named_without_what_else_its_command_line_tells(words: list[bytes], shown: str) -> None:
    assert program_of(words) == shown


def test_a_process_that_is_gone_has_no_program() -> None:
    assert program(2**22 + 1) == ""


def test_nobody_is_not_described() -> None:
    child = subprocess.Popen(["true"])
    child.wait()

    assert processes.describe(child.pid) is None
    assert processes.tree(child.pid) == ()
