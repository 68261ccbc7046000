"""Simulated GPUs: cards from a specification, memory from the claims of living processes.

Stands in for `gpuward.host.gpus`; every snapshot says that it is simulated.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from gpuward.host.nvml_vitals import COMPUTE_MODES
from gpuward.host.program import program
from gpuward.policy.gpus.inventory import Gpu, GpuProcess, Snapshot, Vitals
from gpuward.sim.claims import NO_PROCESS, Claim, ClaimReader, write_claim
from gpuward.sim.gpu_faults import Faults, with_faults

MIB: Final = 1024 * 1024
GPUS_MAX: Final = 4096
_BUSES_PER_DOMAIN: Final = 128
_IDLE_C: Final = 33
_IDLE_W: Final = 71.0
_LOADED_W: Final = 118.0
"""What an H100 draws idle, and idle with a model in its memory."""

CLAIMS_VARIABLE: Final = "GPUWARD_SIM_CLAIMS"
GPUS_VARIABLE: Final = "GPUWARD_SIM_GPUS"


@dataclass(frozen=True, slots=True)
class CardModel:
    """A product: name and total memory as nvidia-smi shows them, and about what the driver reserves."""

    name: str
    total_mib: int
    reserved_mib: int


MODELS: Final = {
    "A100-40GB": CardModel("NVIDIA A100-SXM4-40GB", 40960, 569),
    "A100-80GB": CardModel("NVIDIA A100-SXM4-80GB", 81920, 652),
    "H100-80GB": CardModel("NVIDIA H100 80GB HBM3", 81559, 551),
    "H200-141GB": CardModel("NVIDIA H200", 143771, 573),
    "L40S-48GB": CardModel("NVIDIA L40S", 46068, 609),
    "RTX4090-24GB": CardModel("NVIDIA GeForce RTX 4090", 24564, 368),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One simulated GPU, as it is without any process on it."""

    index: int
    uuid: str
    name: str
    pci_bus_id: str
    total_bytes: int
    reserved_bytes: int


def parse_spec(spec: str) -> tuple[Card, ...]:
    """Return the cards of a specification such as ``8xH100-80GB`` or ``4xH100-80GB,4xL40S-48GB``, in PCI order.

    UUIDs and PCI addresses are the same each time. Raises ValueError with the form and the known models.
    """
    models = [model for part in spec.split(",") for model in _models(part.strip(), spec)]
    if len(models) > GPUS_MAX:
        raise ValueError(f"bad GPU specification {spec!r}: {len(models)} GPUs, at most {GPUS_MAX}")
    return tuple(_card(index, model) for index, model in enumerate(models))


def _models(part: str, spec: str) -> Iterator[CardModel]:
    count, _, wanted = part.partition("x")
    known = {name.casefold(): model for name, model in MODELS.items()}
    model = known.get(wanted.casefold())
    if model is None or not (count.isascii() and count.isdigit() and 1 <= int(count[:9]) <= GPUS_MAX):
        raise ValueError(
            f"bad GPU specification {spec!r}: {part!r} is not COUNTxMODEL, as in 8xH100-80GB; "
            f"COUNT is 1 to {GPUS_MAX}, MODEL is one of {', '.join(MODELS)}"
        )
    yield from (model for _ in range(int(count)))


def _card(index: int, model: CardModel) -> Card:
    domain, bus = divmod(index, _BUSES_PER_DOMAIN)
    return Card(
        index=index,
        uuid=f"GPU-51000000-0000-4000-8000-{index:012x}",
        name=model.name,
        pci_bus_id=f"{domain:08X}:{bus + 1:02X}:00.0",
        total_bytes=model.total_mib * MIB,
        reserved_bytes=model.reserved_mib * MIB,
    )


class SimulatedGpus:
    """A `gpuward.host.gpus.GpuProvider` whose memory is held by whoever wrote a claim into ``claims_dir``."""

    provider: Final = "simulated"

    def __init__(self, spec: str, claims_dir: Path) -> None:
        """Make ``claims_dir`` where it is missing. Raises ValueError for a bad ``spec``, OSError for the directory."""
        self.cards = parse_spec(spec)
        self._claims_dir = claims_dir.absolute()
        self._claims_dir.mkdir(parents=True, exist_ok=True)
        self._reader = ClaimReader(str(self._claims_dir))
        self._names: dict[tuple[int, int], str] = {}
        self._spec = spec
        self._faults = Faults()
        self._answers = threading.Event()

    def lose(self, gpu: int) -> None:
        """The GPU falls off the bus."""
        self._faults = replace(self._faults, lost=self._faults.lost | {gpu})

    def hang(self, seconds: float) -> None:
        """The driver does not answer for so long."""
        self._answers.clear()
        self._faults = replace(self._faults, hangs_until_s=time.monotonic() + seconds)

    def hold(self, gpu: int, count: int) -> None:
        """This process, which is no worker's, holds so many bytes more than nothing; 0 gives them back."""
        self._faults = replace(self._faults, held={**self._faults.held, gpu: count})
        write_claim(str(self._claims_dir), {str(index): held for index, held in self._faults.held.items() if held})

    def leak(self, gpu: int, bytes_per_s: int) -> None:
        """The largest process on the GPU grows from now on."""
        self._faults = replace(self._faults, leaks={**self._faults.leaks, gpu: (bytes_per_s, time.monotonic())})

    def heat(self, gpu: int, degrees_c: int) -> None:
        """The GPU has this temperature."""
        self._faults = replace(self._faults, temperatures={**self._faults.temperatures, gpu: degrees_c})

    def set_compute_mode(self, gpu: int, mode: int) -> None:
        """The operator has set this compute mode, by its number in nvml.h. KeyError where there is none such."""
        self._faults = replace(self._faults, compute_modes={**self._faults.compute_modes, gpu: COMPUTE_MODES[mode]})

    def set_mig(self, gpu: int, *, on: bool) -> None:
        """The operator has put the GPU in MIG mode, without instances, or ended that."""
        others = self._faults.mig - {gpu}
        self._faults = replace(self._faults, mig=others | {gpu} if on else others)

    def clear(self) -> None:
        """Undo every fault."""
        self._faults = Faults()
        self._answers.set()
        write_claim(str(self._claims_dir), {})

    def environment(self) -> dict[str, str]:
        """Return what every worker of this host needs to find its simulated GPUs."""
        cards = [
            {
                "index": card.index,
                "uuid": card.uuid,
                "total_bytes": card.total_bytes,
                "reserved_bytes": card.reserved_bytes,
            }
            for card in self.cards
        ]
        return {CLAIMS_VARIABLE: str(self._claims_dir), GPUS_VARIABLE: json.dumps(cards, separators=(",", ":"))}

    def snapshot(self) -> Snapshot:
        """Return all cards with what living processes claim on them now; blocks for file reads, or made to hang."""
        faults, taken_at_s = self._faults, time.monotonic()
        if faults.hangs_until_s > taken_at_s:
            self._answers.wait(faults.hangs_until_s - taken_at_s)
        try:
            claims = self._reader.read()
        except OSError as error:
            reason = f"cannot list the simulated claims in {self._claims_dir}: {error.strerror}"
            return Snapshot(provider="simulated", state="unavailable", taken_at_s=taken_at_s, reason=reason)
        self._names = {
            (claim.pid, claim.start_ticks): self._names.get((claim.pid, claim.start_ticks)) or program(claim.pid)
            for claim in claims
        }
        held = self._by_card(claims)
        return Snapshot(
            provider="simulated",
            state="ok",
            taken_at_s=taken_at_s,
            gpus=tuple(with_faults(_gpu(card, held[card.index]), faults, taken_at_s) for card in self.cards),
            driver=f"simulated {self._spec}",
        )

    def close(self) -> None:
        """Nothing to give back: claims are their processes' own."""

    def _by_card(self, claims: Iterable[Claim]) -> dict[int, dict[int, GpuProcess]]:
        """Return processes by pid, by card index. A share of a GPU that is not here counts nowhere."""
        held: dict[int, dict[int, GpuProcess]] = {card.index: {} for card in self.cards}
        index_of = {str(card.index): card.index for card in self.cards} | {card.uuid: card.index for card in self.cards}
        for claim in claims:
            for gpu, share_bytes in claim.shares:
                index = index_of.get(gpu)
                if index is None:
                    continue
                before = held[index].get(claim.pid)
                used_bytes = share_bytes + ((before.used_bytes or 0) if before else 0)
                name = self._names[claim.pid, claim.start_ticks]
                held[index][claim.pid] = GpuProcess(pid=claim.pid, used_bytes=used_bytes, name=name)
        return held


def _gpu(card: Card, processes: dict[int, GpuProcess]) -> Gpu:
    claimed_bytes = sum(process.used_bytes or 0 for process in processes.values())
    usable_bytes = card.total_bytes - card.reserved_bytes
    used_bytes = min(claimed_bytes, usable_bytes)
    return Gpu(
        index=card.index,
        uuid=card.uuid,
        name=card.name,
        pci_bus_id=card.pci_bus_id,
        total_bytes=card.total_bytes,
        reserved_bytes=card.reserved_bytes,
        used_bytes=used_bytes,
        free_bytes=usable_bytes - used_bytes,
        processes=tuple(process for process in processes.values() if process.pid != NO_PROCESS),
        vitals=Vitals(
            busy_percent=0,
            temperature_c=_IDLE_C,
            power_w=_LOADED_W if processes else _IDLE_W,
            throttled_by=(),
            ecc_uncorrected=0,
            rows_pending=False,
            rows_failed=False,
            recovery="",
            compute_mode="default",
            mig=False,
        ),
    )
