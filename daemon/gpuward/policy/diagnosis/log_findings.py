"""What stands in a worker's output: one pass over the lines, bounded memory, fast where nothing is wrong. Pure."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from gpuward.policy.diagnosis.causes import Signature
from gpuward.policy.diagnosis.speakers import Speaker, Speakers

EVIDENCE_CHARS_MAX: Final = 300
ELLIPSIS: Final = "..."
LAST_LINES: Final = 5
LINES_KEPT: Final = 200
"""Among them are looked for the last that tell something: an idle worker's log is mostly questions and answers."""

NOISE: Final = re.compile(
    r"^(?:\([^)]{1,80}\) )?(?:INFO: {1,8}\S{1,64} - \"[A-Z]{1,10} |nanobind: | {0,2}- leaked (?:instance|type|function)"
    r"|.{0,200}resource_tracker: |.{0,80}\bserving\w{0,40}\.py:\d|\s*$)|^  warnings\.warn\("
)
"""Requests, gpuward's own among them, and what Python and nanobind say of every process that was killed."""

EXCEPTIONS_KEPT: Final = 32
EXCEPTION_REACH_LINES: Final = 400
"""An exception further than this before the death is an older story."""

STEMS: Final = (
    "rror", "xception", "less than", "out of memory", "Xid", "allen off", "ncorrectable", "Cuda failure", "KV cache",
    "cache blocks", "CUBLAS_", "busy or", "ddress already", "timed out", "Timed out", "broadcast block", "unexpectedly",
    "failed to start", "arger than", "reater than", "repo_name", "model identifier", "invalid literal",
    "Model architectures", "No module", "can't open",
)  # fmt: skip
"""Every line of the table, and every mark below, holds one of these: a line with none is left at once."""

SHAPES_MAX: Final = 4096
"""So many different lines, apart from their numbers, are known to tell nothing; a flood of one kind is read fast."""

_DIGITS: Final = str.maketrans("123456789", "000000000")

DEATHS: Final = ("died unexpectedly", "exited unexpectedly")
"""A process of the engine is gone and left no word of its own (the signal is not in vLLM's log)."""

RUN_MARK: Final = "EngineCore encountered a fatal error"
START_MARK: Final = "EngineCore failed to start"
"""vLLM's own words for the phase in which its engine ended (v1/engine/core.py)."""

EXCEPTION: Final = re.compile(r"(?:^|[\s\]:])(?:[A-Za-z_]\w{0,60}\.){0,8}[A-Z]\w{0,60}(?:Error|Exception)\b: ?\S")
WRAPPERS: Final = re.compile(
    r"EngineDeadError|Engine core initialization failed|Executor failed\.|Worker failed with error|KeyboardInterrupt"
    r"|MQLLMEngine is already dead|MQEngineDeadError|Engine loop (?:has died|is not running)"
    r"|EngineCore encountered an issue"
)
"""Exceptions that only carry the news of another; never the cause."""

MAY_PASS: Final = re.compile(
    r"(?i)connection|connect to|time[d-]? ?out|temporar|unavailable|refused|reset by peer|try again|network|unreachable"
    r"|resolution|resolve|\bbusy\b|in use|too many|\b(?:429|50[0-4])\b|memory|interrupted|lock|broken pipe|\bI/O\b"
)
"""What an exception says that the next start may not meet."""

NUMBERS: Final = re.compile(r"0x[0-9a-fA-F]{1,16}|\d{1,30}")
USAGE: Final = re.compile(r"^\S[^:]{0,200}: error: \S")
MILD: Final = re.compile(r"^(?:\([^)]{0,80}\) )?(?:INFO|DEBUG|(?P<warning>WARNING))[ :]")
"""Lines of these levels may quote anything, also a user's prompt; what a program goes on after is no cause."""


def clip(line: str, at: int = 0, until: int = 0) -> str:
    """Return at most 300 characters of a line, where it is longer those around what stands from ``at`` to ``until``.

    The end of that counts, for the number that helps stands there in vLLM's longest messages; its begin counts more.
    """
    text = line.rstrip()
    if len(text) <= EVIDENCE_CHARS_MAX:
        return text
    room = EVIDENCE_CHARS_MAX - 2 * len(ELLIPSIS)
    start = 0 if at < EVIDENCE_CHARS_MAX // 2 else at - 50
    start = max(start, min(at, until - room))
    before = ELLIPSIS if start else ""
    after = ELLIPSIS if start + room < len(text) else ""
    return f"{before}{text[start : start + room]}{after}"


@dataclass(slots=True)
class Hit:
    """The first line of a signature. ``words``: the named groups of its pattern; ``count``: lines that had it."""

    signature: Signature
    words: dict[str, str]
    lines: list[str]
    count: int = 1


@dataclass(slots=True)
class Findings:
    """What was found. ``exception`` is the line that best explains a death without a signature; empty where none is.

    Lines of the start explain no death while it served, and lines that a client can have written explain none at all.
    """

    signatures: tuple[Signature, ...]
    engine_ran: bool = False
    silent_death: str = ""
    usage_error: str = ""
    _recent: deque[str] = field(default_factory=lambda: deque(maxlen=LINES_KEPT))
    _speakers: Speakers = field(default_factory=Speakers)
    _of_start: dict[int, Hit] = field(default_factory=dict)
    _of_serving: dict[int, Hit] = field(default_factory=dict)
    _open: list[Hit] = field(default_factory=list)
    _exceptions: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=EXCEPTIONS_KEPT))
    _death_at: int | None = None
    _read: int = 0
    _dull: dict[tuple[object, ...], int] = field(default_factory=dict)
    _told: int = 0
    _stems: tuple[str, ...] = STEMS

    def __post_init__(self) -> None:
        """Look also for what no stem covers: signatures of the host may be any text."""
        literals = [
            one.literal for one in self.signatures if one.own and not any(stem in one.literal for stem in STEMS)
        ]
        self._stems = (*STEMS, *literals)

    def read(self, lines: Iterable[str]) -> None:
        """Take in lines, in order; may be called again with those that follow."""
        number = self._read
        hear, recent, speakers = self._speakers.hear, self._recent.append, self._speakers
        for number, piece in enumerate(lines, self._read + 1):
            served = speakers.serving
            hear(piece)
            if speakers.serving is not served:
                self._serves()
            line = piece[1:] if piece[:1] == "\r" else piece
            recent(line[:EVIDENCE_CHARS_MAX])
            if self._open:
                self._follow(line)
            for stem in self._stems:
                if stem in line:
                    self._look(number, line)
                    break
        self._read = number

    def first(self, *, running: bool) -> Hit | None:
        """Return the hit of the first signature of the table that means something in this phase, where it stood."""
        other = "starting" if running else "ready"
        for hits in (self._of_serving,) if running else (self._of_start, self._of_serving):
            for index in sorted(hits):
                hit = hits[index]
                if hit.signature.phase != other and hit.count >= hit.signature.times:
                    return hit
        return None

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The last lines that may tell something."""
        telling: list[str] = []
        for line in reversed(self._recent):
            if len(telling) == LAST_LINES:
                break
            if not NOISE.match(line):
                telling.append(line)
        return tuple(reversed(telling))

    @property
    def exception(self) -> str:
        """The first exception of the last burst before the first death, or behind it where none was before."""
        end = self._read if self._death_at is None else self._death_at
        for number, line in self._exceptions:
            if number >= end - EXCEPTION_REACH_LINES:
                return line
        return ""

    @property
    def may_pass(self) -> bool:
        """Whether one of the exceptions speaks of what may be over at the next start."""
        return any(MAY_PASS.search(line) for _, line in self._exceptions)

    @property
    def fingerprint(self) -> str:
        """The first exception without what differs from run to run; empty where there was none."""
        found = EXCEPTION.search(self.exception)
        return NUMBERS.sub("#", self.exception[found.start() :].strip(" :]")) if found is not None else ""

    def _serves(self) -> None:
        """Requests can come from here on: what was said before is of the start."""
        self._of_serving.clear()
        self._exceptions.clear()
        self._open.clear()
        self.silent_death = ""
        self._death_at = None

    def _look(self, number: int, line: str) -> None:
        """Take in one line that may tell something. Of those that told nothing, only where they stand is noted."""
        shape = (self._speakers.serving, self._speakers.voice, line.translate(_DIGITS))
        raised_at = self._dull.get(shape)
        if raised_at is None:
            before = self._told
            raised_at = self._search(number, line)
            if self._told == before:
                if len(self._dull) >= SHAPES_MAX:
                    self._dull.clear()
                self._dull[shape] = raised_at
        if raised_at >= 0 and (self._death_at is None or not self.exception):
            self._exceptions.append((number, clip(line, raised_at)))

    def _search(self, number: int, line: str) -> int:
        """Look for every signature and mark; return where an exception is named that may count, -1 for nowhere."""
        mild = MILD.match(line)
        starting, speaker = not self._speakers.serving, self._speakers.speaker()
        for index, signature in enumerate(self.signatures):
            if signature.literal in line and (signature.quiet or mild is None):
                if starting:
                    self._match(self._of_start, index, signature, line)
                if speaker is Speaker.ENGINE or (signature.own and speaker is Speaker.UNKNOWN):
                    self._match(self._of_serving, index, signature, line)
        if (mild is None or mild["warning"]) and (starting or speaker is Speaker.ENGINE):
            return self._mark(number, line, speaker)
        return -1

    def _match(self, hits: dict[int, Hit], index: int, signature: Signature, line: str) -> None:
        known = hits.get(index)
        if known is not None and signature.times <= known.count:
            return
        match = signature.pattern.search(line)
        if match is None:
            return
        self._told += 1
        if known is not None:
            known.count += 1
            return
        words = {key: value or "?" for key, value in match.groupdict().items()}
        hits[index] = hit = Hit(signature, words, [clip(line, match.start(), match.end())])
        if signature.following:
            self._open.append(hit)

    def _follow(self, line: str) -> None:
        for hit in self._open:
            hit.lines.append(clip(line))
        self._open = [hit for hit in self._open if len(hit.lines) <= hit.signature.following]

    def _mark(self, number: int, line: str, speaker: Speaker) -> int:
        died = speaker is Speaker.ENGINE and "unexpectedly" in line and any(text in line for text in DEATHS)
        if died and not self.silent_death:
            self.silent_death = clip(line)
        if not self.usage_error and ": error: " in line and USAGE.search(line):
            self.usage_error = clip(line)
        if RUN_MARK in line:
            self.engine_ran = True
        if died or RUN_MARK in line or START_MARK in line:
            self._told += 1
            if self._death_at is None:
                self._death_at = number
        if "Error:" not in line and "Exception:" not in line:
            return -1
        exception = EXCEPTION.search(line)
        return exception.start() if exception is not None and not WRAPPERS.search(line) else -1
