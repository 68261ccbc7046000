"""The threads that work beside the loop: all there from the beginning, so that a full process table harms nothing.

`asyncio.to_thread` starts a thread when it first needs one, and raises RuntimeError where the kernel gives none.
"""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

COUNT: Final = 8


def block_signals() -> None:
    """Leave signals to the main thread: one that comes while a new program takes its place must find nobody else."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGTERM, signal.SIGINT})


def started_threads(count: int = COUNT) -> ThreadPoolExecutor:
    """Return a pool whose threads all run; OSError where the kernel does not give so many."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="gpuward", initializer=block_signals)
    together = threading.Barrier(count + 1)
    try:
        for _ in range(count):
            pool.submit(together.wait)
    except RuntimeError as error:
        together.abort()
        pool.shutdown(wait=False)
        raise OSError(f"cannot start {count} threads: {error}") from error
    together.wait()
    return pool
