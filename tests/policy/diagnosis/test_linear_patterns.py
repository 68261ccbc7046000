"""Every pattern that is searched in text which others write takes time in proportion to its length, and little."""

from __future__ import annotations

import re
import re._parser as parser  # type: ignore[import-not-found]
import time
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from gpuward.policy.diagnosis import log_findings as findings
from gpuward.policy.diagnosis import speakers
from gpuward.policy.diagnosis import verdict as exits
from gpuward.policy.diagnosis.log_findings import Findings
from gpuward.policy.diagnosis.signatures import SIGNATURES

LINE = 4096
"""The longest line that is looked at."""

UNIT = 512
LINEAR_MAX = 32
"""Eight times the text: eight times the time where it is linear, 64 times where it is quadratic."""

SEARCH_MAX_S = 0.02
"""On a line of that length: some 0.3 ms for most here; the quadratic one that was took 0.3 s."""


def patterns_of(module: ModuleType) -> Iterator[tuple[str, re.Pattern[str]]]:
    for name, value in vars(module).items():
        if isinstance(value, re.Pattern):
            yield f"{module.__name__}.{name}", value


PATTERNS = [
    *((f"{index}-{one.literal}", one.pattern) for index, one in enumerate(SIGNATURES)),
    *patterns_of(exits),
    *patterns_of(findings),
    *patterns_of(speakers),
]


def fragments(pattern: str) -> list[str]:
    """The fixed texts of a pattern, in order."""
    found: list[str] = []
    text = ""

    def walk(items: object) -> None:
        nonlocal text
        for kind, value in items:  # type: ignore[attr-defined]
            if kind is parser.LITERAL:
                text += chr(value)
                continue
            found.append(text)
            text = ""
            for each in value if isinstance(value, (tuple, list)) else ():
                for part in each if isinstance(each, list) else (each,):
                    if isinstance(part, parser.SubPattern):
                        walk(part)

    walk(parser.parse(pattern))
    return [each for each in [*found, text] if each]


def hostile(pattern: str, length: int) -> Iterator[str]:
    """Lines that nearly match, again and again: what stands in the pattern, alone and with what its classes take."""
    known = fragments(pattern)
    whole = "".join(known)
    fillers = ("", "a", "A", "a.", "1", "1.", " ", "'", "(", "x:", "a=", "]: ")
    for seed in {*known, whole, *(whole[:cut] for cut in range(1, len(whole), 25)), *fillers}:
        for filler in fillers:
            if unit := seed + filler:
                yield (unit * (length // len(unit) + 1))[:length]
    for first in known[:4]:
        for second in known[:4]:
            yield (first * (length // 2 // len(first) + 1))[: length // 2] + (second * length)[: length // 2]


def quickest_s(work: Callable[[], object], tries: int = 5) -> float:
    """The least of a few, in seconds of the processor: what else the machine does only lengthens."""

    def once_s() -> float:
        begun = time.thread_time()
        work()
        return time.thread_time() - begun

    return min(once_s() for _ in range(tries))


def slowest(pattern: re.Pattern[str]) -> str:
    """The hostile line that takes most time."""
    lines = hostile(pattern.pattern, UNIT)
    return max(lines, key=lambda line: quickest_s(lambda: pattern.search(line), 1))


@pytest.mark.parametrize(("name", "pattern"), PATTERNS, ids=[name for name, _ in PATTERNS])
def test_a_pattern_is_linear_in_a_hostile_line(name: str, pattern: re.Pattern[str]) -> None:
    unit = slowest(pattern)
    short, long = unit * (LINE // UNIT), unit * (8 * LINE // UNIT)

    rounds = [(quickest_s(lambda: pattern.search(short)), quickest_s(lambda: pattern.search(long))) for _ in range(3)]

    assert min(short_s for short_s, _ in rounds) < SEARCH_MAX_S, f"{name}: {short[:80]!r}"
    assert min(long_s / short_s for short_s, long_s in rounds) < LINEAR_MAX, f"{name}: {short[:80]!r}"


def test_the_old_quadratic_pattern_would_be_found() -> None:
    old = re.compile(r"(?P<model>\S+) is not a local folder")
    unit = slowest(old)

    assert quickest_s(lambda: old.search(unit * 32), 1) > LINEAR_MAX * quickest_s(lambda: old.search(unit * 4), 2)


@pytest.mark.parametrize(
    "unit",
    ["model identifier a.b(a=1", "ValueError: a.b", "CUDA out of memory. Tried to allocate 1 GiB. ", "Error: error"],
)
def test_a_line_of_hostile_text_is_read_in_a_moment(unit: str) -> None:
    line = (unit * LINE)[:LINE]

    assert quickest_s(lambda: Findings(SIGNATURES).read([line] * 20), 3) < 20 * SEARCH_MAX_S


def test_a_flood_of_errors_of_one_kind_is_read_fast_and_hides_nothing() -> None:
    flood = [
        f"(EngineCore pid=7) ERROR 11-20 10:29:00 [core.py:1512] ValueError: item {n} is wrong" for n in range(20_000)
    ]
    found = Findings(SIGNATURES)
    begun = time.thread_time()

    found.read(flood)

    assert time.thread_time() - begun < 1.0  # 0.1 s where nothing else runs
    assert "ValueError: item" in found.exception
    found.read(["(EngineCore pid=7) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB.", *flood])
    hit = found.first(running=True)
    assert hit is not None
    assert hit.signature.cause == "gpu-oom-runtime"
