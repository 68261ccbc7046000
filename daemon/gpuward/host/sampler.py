"""GPU snapshots for the loop: one thread that may hang in the driver, and a deadline that the loop keeps for it.

Decides nothing. The thread only runs rounds; every other line of this module runs on the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue
from typing import Final, TypeVar

from gpuward.host.gpus import GpuProvider
from gpuward.host.threads import block_signals
from gpuward.policy.gpus.inventory import Snapshot

T = TypeVar("T")

HURRIED_INTERVAL_S: Final = 0.25
"""While a worker starts, stops or releases, its memory moves within fractions of a second."""

_SPEAKERS: Final = {"nvml": "NVML", "simulated": "the simulated inventory", "none": "the inventory"}


class Sampler:
    """Publishes a snapshot every ``interval_s`` seconds (counted from the end of a round) or at once when asked.

    A round that takes longer than ``deadline_s`` is not waited for: the last GPUs are published as stale, once
    per further ``deadline_s``, until the call comes back. All methods are for the loop's thread.
    """

    def __init__(self, provider: GpuProvider, *, interval_s: float, deadline_s: float) -> None:
        self._provider = provider
        self._usual_s = interval_s
        self._interval_s = interval_s
        self._deadline_s = deadline_s
        self._arrived_at_s = time.monotonic()
        self._publish: Callable[[Snapshot], None] = _nobody_listens
        self._rounds: SimpleQueue[bool | asyncio.Future[None]] = SimpleQueue()
        self._released = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._asked_at_s: float | None = None
        self._again = False
        self._answer: Snapshot | None = None
        self._latest = Snapshot(
            provider=provider.provider,
            state="unavailable",
            taken_at_s=time.monotonic(),
            reason="no GPU snapshot was taken yet",
        )

    @property
    def latest(self) -> Snapshot:
        """The snapshot published last; state unavailable before the first."""
        return self._latest

    def start(self, loop: asyncio.AbstractEventLoop, publish: Callable[[Snapshot], None]) -> None:
        """Start the thread and the first round; ``publish`` gets each snapshot, on the loop."""
        self._loop = loop
        self._publish = publish
        threading.Thread(target=self._run_rounds, args=(loop,), name="gpu-sampler", daemon=True).start()
        self._begin()

    def request(self) -> None:
        """Sample at once; during a round, which may have looked too early, once more right after it."""
        if self._asked_at_s is None:
            self._begin()
        else:
            self._again = True

    async def release(self) -> None:
        """Let the driver go and ask it no more; TimeoutError, and all as before, where it does not come back in time.

        What is known is published once as released. `resume` ends it.
        """
        if self._released or self._loop is None:
            return
        self._released = True
        if self._asked_at_s is None:
            self._cancel_timer()
        closed: asyncio.Future[None] = self._loop.create_future()
        self._rounds.put(closed)
        try:
            async with asyncio.timeout(self._deadline_s):
                await closed
        except TimeoutError:
            self.resume()
            raise
        reason = "the driver was let go by command (gpuctl inventory release); gpuctl inventory resume takes it up"
        self._show(replace(self._answer or self._latest, state="released", reason=reason))

    def resume(self) -> None:
        """Ask the driver again, at once."""
        if self._released:
            self._released = False
            if self._asked_at_s is None:
                self._begin()

    def hurry(self, *, wanted: bool) -> None:
        """Sample every `HURRIED_INTERVAL_S` while wanted, at the usual pace otherwise; counted from the last round."""
        interval_s = min(HURRIED_INTERVAL_S, self._usual_s) if wanted else self._usual_s
        if interval_s == self._interval_s:
            return
        self._interval_s = interval_s
        if self._asked_at_s is None and not self._released:
            self._after(max(0.0, self._arrived_at_s + interval_s - time.monotonic()), self._begin)

    def stop(self) -> None:
        """End sampling without waiting for the driver; the thread lets it go when it comes back, if ever."""
        if self._loop is None:
            return
        self._loop = None
        self._cancel_timer()
        self._rounds.put(False)

    def _begin(self) -> None:
        if self._loop is None or self._released:
            return
        self._asked_at_s = time.monotonic()
        self._again = False
        self._after(self._deadline_s, self._overrun)
        self._rounds.put(True)

    def _after(self, delay_s: float, then: Callable[[], None]) -> None:
        """One timer: the start of the next round while idle, the deadline during one."""
        self._cancel_timer()
        if self._loop is not None:
            self._timer = self._loop.call_later(delay_s, then)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _overrun(self) -> None:
        if self._asked_at_s is None:
            return
        silent_s = time.monotonic() - self._asked_at_s
        speaker = _SPEAKERS[self._provider.provider]
        reason = f"{speaker} has not answered for {silent_s:.3g} s (deadline {self._deadline_s:g} s)"
        self._after(self._deadline_s, self._overrun)
        answer = self._answer
        if answer is None or answer.state != "ok":
            unknown = Snapshot(
                provider=self._provider.provider, state="unavailable", taken_at_s=self._latest.taken_at_s, reason=reason
            )
            self._show(unknown)
        else:
            self._show(replace(answer, state="stale", reason=reason))

    def _arrived(self, snapshot: Snapshot) -> None:
        if self._loop is None:
            return
        self._asked_at_s = None
        self._arrived_at_s = time.monotonic()
        self._answer = snapshot
        if self._released:
            self._cancel_timer()
            return
        if self._again:
            self._begin()
        else:
            self._after(self._interval_s, self._begin)
        self._show(snapshot)

    def _show(self, snapshot: Snapshot) -> None:
        self._latest = snapshot
        self._publish(snapshot)

    def _run_rounds(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread: blocks on the queue, then in the driver, and touches nothing else."""
        block_signals()
        while asked := self._rounds.get():
            if isinstance(asked, asyncio.Future):
                self._provider.close()
                self._tell(loop, _settle, asked)
                continue
            try:
                snapshot = self._provider.snapshot()
            except BaseException as error:  # noqa: BLE001  a defect must end the daemon, not this thread alone
                self._tell(loop, _raise, error)
                return
            self._tell(loop, self._arrived, snapshot)
        self._provider.close()

    @staticmethod
    def _tell(loop: asyncio.AbstractEventLoop, then: Callable[[T], None], answer: T) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed while the driver kept us
            loop.call_soon_threadsafe(then, answer)


def _settle(closed: asyncio.Future[None]) -> None:
    if not closed.done():
        closed.set_result(None)


def _raise(error: BaseException) -> None:
    """On the loop, whose exception handler is the daemon's."""
    raise error


def _nobody_listens(_snapshot: Snapshot) -> None:
    """Before `Sampler.start`."""
