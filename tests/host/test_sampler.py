"""The sampler against a provider that hangs on command. Real thread and loop, short deadlines."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from gpuward.host.sampler import Sampler
from gpuward.policy.gpus.inventory import Gpu, Snapshot

DEADLINE_S = 0.05
NEVER_S = 3600.0


class HangingGpus:
    """Answers while its gate is open; counts rounds."""

    provider = "nvml"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.rounds = 0
        self.closed = threading.Event()
        self.error: Exception | None = None

    def snapshot(self) -> Snapshot:
        self.rounds += 1
        self.entered.set()
        self.gate.wait(20)
        if self.error is not None:
            raise self.error
        gpu = Gpu(index=0, uuid="GPU-0", name="H100", pci_bus_id="00000000:01:00.0", total_bytes=self.rounds)
        return Snapshot(provider="nvml", state="ok", taken_at_s=time.monotonic(), gpus=(gpu,))

    def close(self) -> None:
        self.closed.set()


class Host:
    """A sampler and what it has published."""

    def __init__(self, *, interval_s: float = NEVER_S, deadline_s: float = DEADLINE_S) -> None:
        self.gpus = HangingGpus()
        self.published: asyncio.Queue[Snapshot] = asyncio.Queue()
        self.sampler = Sampler(self.gpus, interval_s=interval_s, deadline_s=deadline_s)

    async def next(self) -> Snapshot:
        return await asyncio.wait_for(self.published.get(), 10)

    async def until(self, state: str) -> Snapshot:
        while (snapshot := await self.next()).state != state:
            pass
        return snapshot


def in_loop(scenario: Callable[[Host], Awaitable[None]], host: Host) -> None:
    async def run() -> None:
        host.sampler.start(asyncio.get_running_loop(), host.published.put_nowait)
        try:
            await scenario(host)
        finally:
            host.sampler.stop()
            host.gpus.gate.set()

    asyncio.run(run())


def test_before_the_first_answer_the_inventory_is_unavailable() -> None:
    host = Host()

    assert host.sampler.latest.state == "unavailable"
    assert host.sampler.latest.reason


def test_the_first_round_starts_at_once_and_later_ones_by_the_interval() -> None:
    async def scenario(host: Host) -> None:
        first, second = await host.next(), await host.next()

        assert (first.state, second.state) == ("ok", "ok")
        assert second.taken_at_s - first.taken_at_s >= 0.02
        assert host.sampler.latest == second

    in_loop(scenario, Host(interval_s=0.02, deadline_s=5.0))


def test_a_request_samples_at_once() -> None:
    async def scenario(host: Host) -> None:
        await host.next()

        host.sampler.request()

        assert (await host.next()).state == "ok"
        assert host.gpus.rounds == 2

    in_loop(scenario, Host(deadline_s=5.0))


def test_requests_during_a_round_become_one_more_round() -> None:
    async def scenario(host: Host) -> None:
        await host.next()
        host.gpus.gate.clear()
        host.sampler.request()

        for _ in range(10):
            host.sampler.request()
        host.gpus.gate.set()
        await host.next()
        await host.next()

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(host.published.get(), 0.1)
        assert host.gpus.rounds == 3

    in_loop(scenario, Host(deadline_s=5.0))


def test_a_hung_driver_leaves_the_last_gpus_marked_stale_with_the_seconds() -> None:
    async def scenario(host: Host) -> None:
        good = await host.next()
        host.gpus.gate.clear()
        host.sampler.request()

        stale = await host.next()

        assert (stale.state, stale.gpus, stale.taken_at_s) == ("stale", good.gpus, good.taken_at_s)
        assert re.fullmatch(r"NVML has not answered for 0\.\d+ s \(deadline 0\.05 s\)", stale.reason)
        assert host.sampler.latest == stale

    in_loop(scenario, Host())


def test_the_reason_keeps_counting_while_the_driver_hangs() -> None:
    async def scenario(host: Host) -> None:
        await host.next()
        host.gpus.gate.clear()
        host.sampler.request()

        first, second = await host.until("stale"), await host.until("stale")

        assert first.reason != second.reason
        assert host.gpus.rounds == 2

    in_loop(scenario, Host())


def test_a_driver_that_never_answered_is_unavailable_not_stale() -> None:
    async def scenario(host: Host) -> None:
        snapshot = await host.next()

        assert (snapshot.state, snapshot.gpus) == ("unavailable", ())
        assert "NVML has not answered for" in snapshot.reason

    host = Host()
    host.gpus.gate.clear()
    in_loop(scenario, host)


def test_the_inventory_recovers_when_the_driver_comes_back() -> None:
    async def scenario(host: Host) -> None:
        await host.next()
        host.gpus.gate.clear()
        host.sampler.request()
        await host.until("stale")

        host.gpus.gate.set()

        recovered = await host.until("ok")
        assert recovered.gpus[0].total_bytes == 2

    in_loop(scenario, Host())


def test_stop_does_not_wait_for_a_hung_driver() -> None:
    async def scenario(host: Host) -> None:
        await asyncio.to_thread(host.gpus.entered.wait, 10)
        before_s = time.monotonic()

        host.sampler.stop()

        assert time.monotonic() - before_s < 1.0
        assert not host.gpus.closed.is_set()

    host = Host(deadline_s=5.0)
    host.gpus.gate.clear()
    in_loop(scenario, host)
    assert host.gpus.closed.wait(10), "the thread lets the driver go when it comes back"


def test_nothing_is_published_after_stop() -> None:
    async def scenario(host: Host) -> None:
        await asyncio.to_thread(host.gpus.entered.wait, 10)

        host.sampler.stop()
        host.gpus.gate.set()
        await asyncio.to_thread(host.gpus.closed.wait, 10)
        await asyncio.sleep(0)

        assert host.published.empty()

    host = Host()
    host.gpus.gate.clear()
    in_loop(scenario, host)


def test_a_hurried_sampler_looks_four_times_a_second_until_it_may_rest_again() -> None:
    async def scenario(host: Host) -> None:
        first = await host.next()

        host.sampler.hurry(wanted=True)
        second, third = await host.next(), await host.next()
        host.sampler.hurry(wanted=False)

        assert 0.24 < third.taken_at_s - second.taken_at_s < 2.0
        assert second.taken_at_s - first.taken_at_s < 2.0
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(host.published.get(), 0.4)

    in_loop(scenario, Host(deadline_s=5.0))


def test_hurry_asked_again_and_again_does_not_put_the_next_round_off() -> None:
    async def scenario(host: Host) -> None:
        await host.next()
        until_s = time.monotonic() + 0.6

        while time.monotonic() < until_s:
            host.sampler.hurry(wanted=True)
            host.sampler.hurry(wanted=False)
            host.sampler.hurry(wanted=True)
            await asyncio.sleep(0.02)

        assert host.gpus.rounds >= 2

    in_loop(scenario, Host(deadline_s=5.0))


def test_a_pace_that_is_faster_than_hurried_is_kept() -> None:
    async def scenario(host: Host) -> None:
        await host.next()

        host.sampler.hurry(wanted=True)
        first, second = await host.next(), await host.next()

        assert second.taken_at_s - first.taken_at_s < 0.2

    in_loop(scenario, Host(interval_s=0.02, deadline_s=5.0))


def test_a_defect_in_the_provider_reaches_the_loop() -> None:
    seen: list[BaseException | None] = []

    async def scenario(host: Host) -> None:
        reported = asyncio.Event()

        def on_error(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
            error = context.get("exception")
            seen.append(error if isinstance(error, BaseException) else None)
            reported.set()

        asyncio.get_running_loop().set_exception_handler(on_error)
        await asyncio.wait_for(reported.wait(), 10)

    host = Host(deadline_s=5.0)
    host.gpus.error = ZeroDivisionError("a defect")
    in_loop(scenario, host)
    assert [type(error) for error in seen] == [ZeroDivisionError]


def test_release_closes_the_driver_and_says_so_with_what_was_known() -> None:
    async def scenario(host: Host) -> None:
        good = await host.next()

        await host.sampler.release()
        host.sampler.request()
        host.sampler.hurry(wanted=True)

        released = await host.next()
        assert (released.state, released.gpus, host.gpus.closed.is_set()) == ("released", good.gpus, True)
        assert "gpuctl inventory resume" in released.reason
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(host.published.get(), 0.1)
        assert host.gpus.rounds == 1

    in_loop(scenario, Host(interval_s=0.02, deadline_s=5.0))


def test_resume_asks_the_driver_again_at_once() -> None:
    async def scenario(host: Host) -> None:
        await host.next()
        await host.sampler.release()
        await host.next()

        host.sampler.resume()

        assert (await host.next()).state == "ok"

    in_loop(scenario, Host(deadline_s=5.0))


def test_a_driver_that_hangs_cannot_be_released_and_is_asked_again_when_it_comes_back() -> None:
    async def scenario(host: Host) -> None:
        await host.next()
        host.gpus.gate.clear()
        host.sampler.request()

        with pytest.raises(TimeoutError):
            await host.sampler.release()

        host.gpus.gate.set()
        await host.until("ok")
        assert host.sampler.latest.state == "ok"

    in_loop(scenario, Host(interval_s=0.02))


def test_a_round_that_ends_during_the_release_is_not_published() -> None:
    async def scenario(host: Host) -> None:
        await host.next()
        host.gpus.gate.clear()
        host.sampler.request()
        releasing = asyncio.create_task(host.sampler.release())
        await asyncio.sleep(0)
        host.gpus.gate.set()

        await releasing

        assert (await host.next()).state == "released"
        assert host.published.empty()

    in_loop(scenario, Host(deadline_s=5.0))
