"""XIDs out of an event set, through the real binding on a fake driver; real thread and loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from tests.host.fake_driver import DriverGpu, FakeDriver, binding_to
from tests.waiting import eventually

from gpuward.host.xids import XidListener
from gpuward.policy.gpus.health import XidSeen


class Host:
    """A listener on three GPUs, and what it has published."""

    def __init__(self) -> None:
        gpus = [DriverGpu(f"GPU-{index}", f"00000000:{0x10 + index:02X}:00.0") for index in range(3)]
        self.driver = FakeDriver(*gpus)
        self.published: asyncio.Queue[XidSeen] = asyncio.Queue()
        self.listener = XidListener(binding_to(self.driver))

    async def next(self) -> XidSeen:
        return await asyncio.wait_for(self.published.get(), 10)

    async def until(self, condition: Callable[[], bool]) -> None:
        await asyncio.to_thread(eventually, condition, within_s=10, every_s=0.01)


def in_loop(scenario: Callable[[Host], Awaitable[None]], host: Host) -> None:
    async def run() -> None:
        host.listener.start(asyncio.get_running_loop(), host.published.put_nowait)
        try:
            await scenario(host)
        finally:
            host.listener.stop()

    asyncio.run(run())


def test_an_xid_comes_with_its_gpu_code_and_time() -> None:
    async def scenario(host: Host) -> None:
        before = time.time()
        host.driver.xids.put((2, 79))

        seen = await host.next()

        assert (seen.uuid, seen.code) == ("GPU-2", 79)
        assert before <= seen.at <= time.time()

    in_loop(scenario, Host())


def test_every_xid_is_told_in_order() -> None:
    async def scenario(host: Host) -> None:
        for code in (13, 45, 45, 31):
            host.driver.xids.put((0, code))

        assert [(await host.next()).code for _ in range(4)] == [13, 45, 45, 31]

    in_loop(scenario, Host())


def test_a_gpu_that_is_lost_does_not_keep_the_others_from_being_heard() -> None:
    async def scenario(host: Host) -> None:
        host.driver.xids.put((1, 48))

        assert (await host.next()).uuid == "GPU-1"
        assert host.driver.registered == {"GPU-1", "GPU-2"}

    host = Host()
    host.driver.gpus[0].error = 15
    in_loop(scenario, host)


def test_trouble_of_the_wait_is_waited_out_with_a_new_set() -> None:
    async def scenario(host: Host) -> None:
        await host.until(lambda: host.driver.calls["nvmlEventSetWait_v2"] > 0)
        calls = host.driver.calls["nvmlEventSetWait_v2"]
        host.driver.wait_error = 0
        host.driver.xids.put((0, 31))

        assert (await host.next()).code == 31
        assert calls < 3, "an error that stays must not be asked for in a loop"
        assert host.driver.calls["nvmlEventSetCreate"] >= 2

    host = Host()
    host.driver.wait_error = 15
    in_loop(scenario, host)


def test_a_released_listener_has_closed_the_driver_and_hears_again_once_resumed() -> None:
    async def scenario(host: Host) -> None:
        await host.until(lambda: len(host.driver.registered) == 3)

        await host.listener.release()
        closed = (host.driver.calls["nvmlShutdown"], set(host.driver.registered))
        host.listener.resume()
        await host.until(lambda: len(host.driver.registered) == 3)
        host.driver.xids.put((0, 94))

        assert closed == (1, set())
        assert (await host.next()).code == 94

    in_loop(scenario, Host())


def test_a_host_without_a_driver_is_listened_to_once_it_has_one() -> None:
    async def scenario(host: Host) -> None:
        await host.until(lambda: host.driver.calls["nvmlInitWithFlags"] > 0)
        host.driver.init_error = 0
        host.driver.xids.put((0, 31))

        assert (await host.next()).code == 31

    host = Host()
    host.driver.init_error = 9
    in_loop(scenario, host)


def test_nothing_is_published_after_stop() -> None:
    async def scenario(host: Host) -> None:
        await host.until(lambda: len(host.driver.registered) == 3)

        host.listener.stop()
        host.driver.xids.put((0, 31))
        await host.until(lambda: host.driver.calls["nvmlShutdown"] == 1)

        with pytest.raises(asyncio.QueueEmpty):
            host.published.get_nowait()

    in_loop(scenario, Host())
