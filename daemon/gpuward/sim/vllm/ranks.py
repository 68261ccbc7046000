"""The ranks of a simulated engine: in the engine's own process for one GPU, a process each for several, as in vLLM."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from gpuward.sim.vllm.console import Console
from gpuward.sim.vllm.devices import CudaOutOfMemory, MemoryRefused, RankMemory
from gpuward.sim.vllm.loop import Channel
from gpuward.sim.vllm.title import set_title

_REFUSALS: Final[dict[str, type[Exception]]] = {"refused": MemoryRefused, "oom": CudaOutOfMemory}


class RankDied(Exception):
    """A rank's process ended; the text names it as vLLM does."""


class Rank(Protocol):
    """One rank, wherever it runs. Raises RankDied where it is gone."""

    def check(self, utilization: float) -> None:
        """Check free memory as vLLM does. Raises MemoryRefused."""

    def hold(self, wanted_bytes: int) -> None:
        """Hold this many bytes from now on. Raises CudaOutOfMemory."""


class RankProcess(NamedTuple):
    """A rank in a child of the engine."""

    name: str
    pid: int
    channel: Channel

    def check(self, utilization: float) -> None:
        """Ask the child."""
        self._ask("check", utilization)

    def hold(self, wanted_bytes: int) -> None:
        """Ask the child."""
        self._ask("hold", wanted_bytes)

    def _ask(self, verb: str, operand: float) -> None:
        self.channel.send(verb, operand)
        match self.channel.receive():
            case ["done"]:
                return
            case [str(kind), str(text)]:
                raise _REFUSALS[kind](text)
            case _:
                raise RankDied(self.name)


class RankNames(NamedTuple):
    """Title and log prefix of a rank: pipeline stages are named where there are several."""

    short: str
    title: str


def rank_names(rank: int, tensor_parallel_size: int, world_size: int) -> RankNames:
    """Return what vLLM calls rank ``rank`` (v1/executor/multiproc_executor.py)."""
    stage, tensor = divmod(rank, tensor_parallel_size)
    short = f"Worker_PP{stage}_TP{tensor}" if world_size > tensor_parallel_size else f"Worker_TP{tensor}"
    return RankNames(short, f"VLLM::{short}")


def fork_ranks(
    memories: Sequence[RankMemory], names: Sequence[RankNames], close_inherited: Callable[[], None], life_s: int
) -> list[RankProcess]:
    """Start a child per rank. ``close_inherited`` closes in it what only the engine may hold open."""
    ranks: list[RankProcess] = []
    for number, (memory, name) in enumerate(zip(memories, names, strict=True)):
        ours, theirs = Channel.pair()
        pid = os.fork()
        if pid == 0:
            close_inherited()
            for sibling in [*(rank.channel for rank in ranks), ours]:
                sibling.close()
            signal.alarm(life_s)
            set_title(name.title)
            _serve(theirs, memory, Console(name.short))
            os._exit(0)
        theirs.close()
        ranks.append(RankProcess(f"VllmWorker-{number}", pid, ours))
    return ranks


def _serve(engine: Channel, memory: RankMemory, console: Console) -> None:
    """Do what the engine asks; its death is the end of the channel, vLLM's death pipe."""
    while (message := engine.receive()) is not None:
        try:
            match message:
                case ["check", float(utilization)]:
                    memory.check(utilization)
                case ["hold", int(wanted_bytes)]:
                    memory.hold(wanted_bytes)
                case _:
                    raise AssertionError(message)
        except MemoryRefused as error:
            engine.send("refused", str(error))
        except CudaOutOfMemory as error:
            engine.send("oom", str(error))
        else:
            engine.send("done")
    console.info("multiproc_executor.py:843", "Parent process exited, terminating worker queues")
