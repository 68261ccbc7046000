"""Operations on GPUs: out of service and back, the driver let go, and faults of a simulated host."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from gpuward.api.views import Document, Views
from gpuward.control import requests as ask
from gpuward.control.server import Refusal
from gpuward.policy.gpus.health import NotPossible
from gpuward.policy.gpus.inventory import Gpu, Snapshot
from gpuward.policy.reasons import By, named
from gpuward.supervisor.equipment import Equipment
from gpuward.supervisor.gpu_care import GpuCare

GpuRequest: TypeAlias = ask.GpuArgs | ask.InventoryArgs | ask.SimArgs


class Simulation(Protocol):
    """GPUs that can be made to fail."""

    def lose(self, gpu: int) -> None:
        """The GPU falls off the bus."""

    def hang(self, seconds: float) -> None:
        """The driver does not answer for so long."""

    def hold(self, gpu: int, count: int) -> None:
        """A process that is no worker's holds so many bytes; 0 gives them back."""

    def leak(self, gpu: int, bytes_per_s: int) -> None:
        """The largest process on the GPU grows."""

    def heat(self, gpu: int, degrees_c: int) -> None:
        """The GPU has this temperature."""

    def set_compute_mode(self, gpu: int, mode: int) -> None:
        """The GPU is in this compute mode, by its number in nvml.h; KeyError where there is none such."""

    def set_mig(self, gpu: int, *, on: bool) -> None:
        """The GPU is in MIG mode, or is not."""

    def clear(self) -> None:
        """Undo all of it."""


class GpuCommands:
    """Answers requests about GPUs; runs on the loop's thread. ``simulation`` None on a real host."""

    def __init__(self, equipment: Equipment, care: GpuCare, views: Views, simulation: Simulation | None) -> None:
        self._equipment = equipment
        self._care = care
        self._views = views
        self._simulation = simulation

    async def answer(self, args: GpuRequest, by: By | None) -> Document:
        """Answer one request, or raise Refusal."""
        match args:
            case ask.GpuArgs():
                return self._gpu(args, by)
            case ask.InventoryArgs():
                return await self._inventory(args, by)
            case ask.SimArgs():
                return self._simulate(args)

    def _gpu(self, args: ask.GpuArgs, by: By | None) -> Document:
        gpu = self._known(args.gpu)
        try:
            self._care.command(args.action, gpu, args.reason, by)
        except NotPossible as error:
            raise Refusal("refused", str(error)) from None
        except OSError as error:
            raise Refusal("failed", f"cannot {args.action} GPU {gpu.index}: {error.strerror}") from None
        return {"gpu": self._views.gpu(gpu)}

    def _known(self, name: int | str) -> Gpu:
        snapshot = self._snapshot
        for gpu in snapshot.gpus:
            if name in (gpu.index, gpu.uuid, str(gpu.index)):
                return gpu
        there = f"there are GPUs 0 to {len(snapshot.gpus) - 1}" if snapshot.gpus else f"none: {snapshot.reason}"
        raise Refusal("no-such-gpu", f"there is no GPU {name}; {there}")

    @property
    def _snapshot(self) -> Snapshot:
        return self._equipment.sampler.latest

    async def _inventory(self, args: ask.InventoryArgs, by: By | None) -> Document:
        """Let the driver go, or take it up again; the workers do not notice."""
        sampler, xids = self._equipment.sampler, self._equipment.xids
        if args.action == "resume":
            sampler.resume()
            if xids is not None:
                xids.resume()
            self._care.tell("inventory-resumed", named("the driver is asked again by command", by), by)
            return {"state": "ok", "reason": "the driver is asked again"}
        try:
            await sampler.release()
            if xids is not None:
                await xids.release()
        except TimeoutError:
            if xids is not None:
                xids.resume()
            sampler.resume()
            within_s = self._equipment.settings.inventory.deadline_s
            raise Refusal("failed", f"cannot release the driver: a call hangs in it since {within_s:g} s") from None
        self._care.tell("inventory-released", named("the driver was let go by command", by), by)
        return {"state": self._snapshot.state, "reason": self._snapshot.reason}

    def _simulate(self, args: ask.SimArgs) -> Document:
        simulation = self._simulation
        if simulation is None:
            raise Refusal("refused", "cannot simulate a fault: these GPUs are real; faults need a --simulate host")
        if args.fault in {"hang", "clear"}:
            if args.fault == "hang":
                simulation.hang(float(self._value(args)))
            else:
                simulation.clear()
        else:
            self._fault_of(simulation, args)
        self._equipment.sampler.request()
        return {"fault": args.fault, "gpu": args.gpu, "value": args.value}

    def _fault_of(self, simulation: Simulation, args: ask.SimArgs) -> None:
        if args.gpu is None:
            raise Refusal("bad-request", f"sim {args.fault}: name a GPU")
        gpu = self._known(args.gpu)
        match args.fault:
            case "xid":
                self._care.xid_on(gpu, int(self._value(args)))
            case "lost":
                simulation.lose(gpu.index)
            case "foreign":
                simulation.hold(gpu.index, int(self._value(args)))
            case "leak":
                simulation.leak(gpu.index, int(self._value(args)))
            case "temperature":
                simulation.heat(gpu.index, int(self._value(args)))
            case _:
                self._set_mode(simulation, gpu, args)

    def _set_mode(self, simulation: Simulation, gpu: Gpu, args: ask.SimArgs) -> None:
        value = int(self._value(args))
        if args.fault == "mig":
            simulation.set_mig(gpu.index, on=bool(value))
            return
        try:
            simulation.set_compute_mode(gpu.index, value)
        except KeyError:
            known = "0 (default), 2 (prohibited), 3 (exclusive-process)"
            raise Refusal("bad-request", f"there is no compute mode {value}; there are {known}") from None

    @staticmethod
    def _value(args: ask.SimArgs) -> Any:  # noqa: ANN401  int or float as sent
        if args.value is None:
            raise Refusal("bad-request", f"sim {args.fault}: give a number")
        return args.value
