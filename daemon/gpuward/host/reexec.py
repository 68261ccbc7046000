"""Replaces this process by the program that is installed now: same pid, same command line. Never decides when.

Everything that a run needs is its keeper's; of this process only the pid, the environment and the working directory
go on. Descriptors are closed on exec, and with them every lock goes: the new program takes them again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import NoReturn

ASK_TIMEOUT_S = 20.0
IMPORTS = "import gpuward.app; print('gpuward imports')"
"""What the daemon runs imports all of it, unlike ``--version``: a half installed package fails here."""

ANSWERS = "gpuward "
"""Both say this at last. Their exit codes prove nothing: the daemon reaps every child, so another may have had them."""


class CannotReplace(Exception):
    """The installed program would not run; the message ends with its own last line."""


def installed_version() -> str:
    """The version of the program that this process would become; CannotReplace where it cannot be run or imported."""
    program = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]  # the interpreter, its options, the program
    said = _ask([*program, "--version"])
    _ask([sys.executable, "-c", IMPORTS])
    return said.split()[-1]


def replace() -> NoReturn:
    """Become the installed program; OSError where the interpreter is gone.

    A signal that comes before that program listens waits for it: the mask outlives exec.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGTERM, signal.SIGINT})
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - our own command line


def _ask(words: list[str]) -> str:
    shown = " ".join(words)
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise CannotReplace(f"{shown} did not answer within {ASK_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise CannotReplace(f"{shown} cannot be run: {error.strerror}") from None
    if not answer.stdout.startswith(ANSWERS):
        last = (answer.stderr or answer.stdout).strip().splitlines()[-1:] or ["it says nothing"]
        raise CannotReplace(f"{shown} fails: {last[0]}")
    return answer.stdout
