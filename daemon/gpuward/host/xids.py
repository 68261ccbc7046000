"""XID errors as the driver reports them: an NVML event set in a thread of its own, which may hang in the driver.

An event set belongs to one thread, and a wait on the main thread would delay signals. It only listens: which GPU
is lost is for the samples to say, so every trouble here is waited out and the set is made anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from gpuward.host.nvml import Nvml, NvmlTrouble
from gpuward.host.threads import block_signals
from gpuward.policy.gpus.health import XidSeen

_XID_EVENTS: Final = 8
"""nvmlEventTypeXidCriticalError of nvml.h."""

_TIMEOUT: Final = 10
"""NVML_ERROR_TIMEOUT: nothing happened."""

_WAIT_MS: Final = 500
RELEASED_WITHIN_S: Final = 10.0
"""A wait that does not come back for so long hangs in the driver."""

_PAUSE_FIRST_S: Final = 1.0
_PAUSE_MAX_S: Final = 30.0


class XidListener:
    """Publishes XIDs on the loop. All methods are for the loop's thread."""

    def __init__(self, pynvml_module: ModuleType | None = None) -> None:
        self._publish: Callable[[XidSeen], None] = _nobody_listens
        self._nvml = Nvml(pynvml_module)
        self._wanted = threading.Event()
        self._changed = threading.Event()
        self._closed = threading.Event()
        self._ended = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop, publish: Callable[[XidSeen], None]) -> None:
        """Start the thread; ``publish`` gets each XID, on the loop."""
        self._loop = loop
        self._publish = publish
        self._wanted.set()
        threading.Thread(target=self._listen, name="gpu-xids", daemon=True).start()

    async def release(self) -> None:
        """Let the driver go; TimeoutError where that takes longer than `RELEASED_WITHIN_S`."""
        self._pause()
        if not await asyncio.to_thread(self._closed.wait, RELEASED_WITHIN_S):
            raise TimeoutError

    def resume(self) -> None:
        """Listen again."""
        self._closed.clear()
        self._wanted.set()
        self._changed.set()

    def stop(self) -> None:
        """End without waiting for the driver."""
        self._ended = True
        self._pause()
        self._loop = None

    def _pause(self) -> None:
        self._wanted.clear()
        self._changed.set()

    def _listen(self) -> None:
        """The thread: listens while that is wanted; waits longer and longer after trouble."""
        block_signals()
        pause_s = _PAUSE_FIRST_S
        while not self._ended:
            self._changed.clear()
            if not self._wanted.is_set():
                self._closed.set()
                self._changed.wait(1.0)
                continue
            self._closed.clear()
            began_s = time.monotonic()
            with contextlib.suppress(NvmlTrouble):
                self._until_trouble()
            if time.monotonic() - began_s > _PAUSE_MAX_S:
                pause_s = _PAUSE_FIRST_S
            if self._wanted.is_set():
                self._changed.wait(pause_s)
                pause_s = min(_PAUSE_MAX_S, pause_s * 2)

    def _until_trouble(self) -> None:
        """Make a set, listen on it until nobody wants that any more. Raises NvmlTrouble."""
        self._nvml.open()
        try:
            events = self._nvml.call("nvmlEventSetCreate")
            try:
                uuid_of = self._register(events)
                while self._wanted.is_set():
                    self._wait(events, uuid_of)
            finally:
                with contextlib.suppress(NvmlTrouble):
                    self._nvml.call("nvmlEventSetFree", events)
        finally:
            with contextlib.suppress(NvmlTrouble):
                self._nvml.close()

    def _register(self, events: object) -> dict[int | None, str]:
        """Ask for the XIDs of every GPU that has them; return UUIDs by handle."""
        uuid_of: dict[int | None, str] = {}
        for index in range(self._nvml.count()):
            with contextlib.suppress(NvmlTrouble):
                handle = self._nvml.handle(index)
                uuid_of[_address(handle)] = self._nvml.identity(handle).uuid
                self._nvml.call("nvmlDeviceRegisterEvents", handle, _XID_EVENTS, events)
        return uuid_of

    def _wait(self, events: object, uuid_of: dict[int | None, str]) -> None:
        try:
            event = self._nvml.call("nvmlEventSetWait_v2", events, _WAIT_MS)
        except NvmlTrouble as trouble:
            if trouble.code == _TIMEOUT:
                return
            raise
        uuid = uuid_of.get(_address(event.device))
        if event.eventType & _XID_EVENTS and uuid is not None:
            self._tell(XidSeen(uuid=uuid, code=int(event.eventData), at=time.time()))

    def _tell(self, seen: XidSeen) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed while the driver kept us
                loop.call_soon_threadsafe(self._publish, seen)


def _nobody_listens(_seen: XidSeen) -> None:
    """Before `XidListener.start`."""


def _address(handle: Any) -> int | None:  # noqa: ANN401  ctypes
    return ctypes.cast(handle, ctypes.c_void_p).value
