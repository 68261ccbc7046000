"""Threads that are all there before they are needed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading

import pytest

from gpuward.host.threads import started_threads


def test_work_beside_the_loop_needs_no_new_thread() -> None:
    async def scenario() -> tuple[int, int]:
        asyncio.get_running_loop().set_default_executor(started_threads(3))
        before = threading.active_count()
        together = threading.Barrier(3)
        await asyncio.gather(*(asyncio.to_thread(together.wait) for _ in range(3)))
        return before, threading.active_count()

    before, after = asyncio.run(scenario())

    assert before == after == threading.active_count() + 3


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become a user without processes")
def test_a_host_that_gives_no_threads_is_said_to() -> None:
    program = (
        "import os, resource\nfrom gpuward.host.threads import started_threads\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (1, 1)); os.setuid(60122)\n"
        "try: started_threads(3)\n"
        "except OSError as error: print(error)"
    )

    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)

    assert told.stdout == "cannot start 3 threads: can't start new thread\n"
