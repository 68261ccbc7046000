"""Commands about GPUs: gpu (out of service, back), inventory (the driver let go), sim (faults of a simulated host)."""

from __future__ import annotations

from gpuward.control.protocol import EXIT_OK
from gpuward.ctl.arguments import Command
from gpuward.ctl.trouble import Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from gpuward.control.client import Client
    from gpuward.control.documents import Fault, GpuAnswer, Inventory
    from gpuward.ctl.screen import Screen

_FAULTS = {
    "xid": "GPU CODE",
    "lost": "GPU",
    "hang": "SECONDS",
    "foreign": "GPU BYTES",
    "leak": "GPU BYTES-PER-SECOND",
    "temperature": "GPU CELSIUS",
    "compute-mode": "GPU 0|2|3",
    "mig": "GPU 0|1",
    "clear": "",
}
_SCALES = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def gpu_arguments(parser: ArgumentParser) -> None:
    """Arguments of ``gpu``."""
    parser.add_argument("action", choices=("cordon", "uncordon", "clear"), help="clear ends a quarantine")
    parser.add_argument("gpu", metavar="GPU", help="PCI-order index or UUID")
    parser.add_argument("--reason", default="", help="shown by status and events beside who asked")


def gpu(args: Namespace, client: Client, screen: Screen) -> int:
    """``gpuctl gpu``: what runs on the GPU goes on in any case; the GPU is never reset."""
    answer: GpuAnswer = client.call("gpu", {"action": args.action, "gpu": args.gpu, "reason": args.reason})
    one = answer["gpu"]
    said = one["reason"] or f"GPU {one['index']} is {one['health']}"
    screen.listing(answer, [one], [one["uuid"]], lambda: screen.sentence(said))
    return EXIT_OK


def inventory_arguments(parser: ArgumentParser) -> None:
    """Arguments of ``inventory``."""
    parser.add_argument("action", choices=("release", "resume"), help="let the NVIDIA driver go, or take it up again")


def inventory(args: Namespace, client: Client, screen: Screen) -> int:
    """``gpuctl inventory``: the workers do not notice; nothing starts on a GPU until it is resumed."""
    answer: Inventory = client.call("inventory", {"action": args.action})
    said = f"inventory {answer['state']}: {answer['reason']}"
    screen.listing(answer, [answer], [answer["state"]], lambda: screen.sentence(said))
    return EXIT_OK


def sim_arguments(parser: ArgumentParser) -> None:
    """Arguments of ``sim``."""
    forms = ", ".join(f"{fault} {form}".strip() for fault, form in _FAULTS.items())
    parser.add_argument("fault", choices=_FAULTS, metavar="FAULT", help=forms)
    parser.add_argument("words", nargs="*", metavar="WORD", help="GPU and number; bytes may end in K, M, G or T")


def sim(args: Namespace, client: Client, screen: Screen) -> int:
    """``gpuctl sim``: a fault of a simulated GPU, until ``sim clear``."""
    form = _FAULTS[args.fault].split()
    if len(args.words) != len(form):
        raise Usage(f"sim {args.fault} takes {' '.join(form) or 'nothing more'}")
    words = dict(zip(form, args.words, strict=True))
    where = words.pop("GPU", None)
    value = next((number(word) for word in words.values()), None)
    answer: Fault = client.call("sim", {"fault": args.fault, "gpu": where, "value": value})
    screen.listing(
        answer, [answer], [args.fault], lambda: screen.line(f"simulated: {' '.join([args.fault, *args.words])}")
    )
    return EXIT_OK


def number(word: str) -> float:
    """Return ``30G``, ``30GiB`` or ``79`` as a number; Usage where it is none."""
    short = word.upper().removesuffix("IB")
    scale = _SCALES.get(short[-1:])
    try:
        return float(short[:-1]) * scale if scale else float(word)
    except ValueError:
        raise Usage(f"{word!r} is no number; write 79, 2.5 or 30G") from None


COMMANDS = {
    "gpu": Command(gpu_arguments, gpu),
    "inventory": Command(inventory_arguments, inventory),
    "sim": Command(sim_arguments, sim),
}
