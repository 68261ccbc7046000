"""Commands that read on: logs and events."""

from __future__ import annotations

import time

from gpuward.control.client import Unreachable
from gpuward.control.feed import Feed, Lost
from gpuward.control.protocol import EXIT_OK
from gpuward.ctl.arguments import Command, count
from gpuward.ctl.table import Table
from gpuward.ctl.text import for_terminal, one_line, shortened, wrapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from gpuward.control.client import Client
    from gpuward.control.documents import Event, LogChunk
    from gpuward.ctl.screen import Screen

LINES_DEFAULT = 100
CHUNK_MAX_BYTES = 1 << 20
POLL_S = 0.25
QUIET_S = 2.0
RECONNECT_PAUSE_S = 0.5
RECONNECT_WITHIN_S = 60.0
FOLLOWED = (16, 15)
"""Least characters for kind and name where events come one by one, so that their reasons mostly stand in line."""

GAP_CHARS = 6
"""Between the four columns of an event."""

REASON_LEAST = 24
REASON_BELOW = 4
"""A reason with less room than this beside kind and name stands below them, indented."""


def logs_arguments(parser: ArgumentParser) -> None:
    """Arguments of ``logs``."""
    parser.add_argument("worker", metavar="NAME", help="a worker, for example decode/0")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, also after a restart")
    parser.add_argument("-n", "--lines", type=count, default=LINES_DEFAULT, metavar="N", help="last lines (100)")
    parser.add_argument(
        "--run", type=count, metavar="N", help="an earlier run (gpuctl why lists them); with -f: only it"
    )


def show_logs(args: Namespace, client: Client, screen: Screen) -> int:
    """``gpuctl logs``: the worker's output as it is."""
    chunk = _chunk(client, args.worker, args.run, lines=args.lines)
    if screen.output in {"json", "jsonl"} and not args.follow:
        screen.document(chunk, compact=screen.output == "jsonl")
        return EXIT_OK
    if chunk["offset"] > 0 and chunk["text"].count("\n") < args.lines:
        screen.complain(
            f"only the last {len(chunk['text'])} characters are shown, {args.lines} lines are more than fit"
        )
    _write_output(screen, chunk["text"])
    if chunk.get("lost"):
        screen.complain(chunk["lost"])
    if args.follow:
        _follow(client, screen, chunk, only_run=args.run is not None)
    return EXIT_OK


def _write_output(screen: Screen, text: str) -> None:
    """As it is to a pipe or a file; a terminal is not commanded by it."""
    screen.out.write(for_terminal(text) if screen.is_terminal else text)


def _follow(client: Client, screen: Screen, chunk: LogChunk, *, only_run: bool) -> None:
    """Write what comes after ``chunk``; over the end of its run into the next one, unless ``only_run``."""
    told_run = -1
    while True:
        screen.out.flush()
        worker, run = chunk["worker"], chunk["run"]
        was_ended = chunk["ended"]
        chunk = _chunk(client, worker, run, offset=chunk["next_offset"])
        _write_output(screen, chunk["text"])
        if chunk["text"] or not was_ended:
            if not chunk["text"]:
                time.sleep(POLL_S)
            continue
        if only_run:
            return
        if told_run != run:
            told_run = run
            screen.complain(f"run {run} of {worker} has ended; waiting for the next")
        newest = _chunk(client, worker, None, offset=0)
        if newest["run"] != run:
            screen.complain(f"run {newest['run']} of {worker}")
            screen.out.write(newest["text"])
            chunk = newest
        else:
            time.sleep(POLL_S)


def _chunk(
    client: Client, worker: str, run: int | None, *, lines: int | None = None, offset: int | None = None
) -> LogChunk:
    asked = {"worker": worker, "run": run, "lines": lines, "offset": offset, "max_bytes": CHUNK_MAX_BYTES}
    chunk: LogChunk = client.call("logs", asked)
    return chunk


def events_arguments(parser: ArgumentParser) -> None:
    """Arguments of ``events``."""
    parser.add_argument("worker", nargs="?", metavar="NAME", help="only this worker")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what happens")
    parser.add_argument("-n", "--lines", type=count, default=50, metavar="N", help="last events (50)")


def show_events(args: Namespace, client: Client, screen: Screen) -> int:
    """``gpuctl events``: what happened, and with -f what happens; lost events are said to be lost."""
    feed = Feed(client, worker=args.worker, quiet_s=QUIET_S)
    past = list(feed.last(args.lines))
    if not args.follow:
        screen.listing({"events": past}, past, [_name(event) for event in past], lambda: _draw(screen, past))
        return EXIT_OK
    for event in past:
        _write_event(screen, event)
    screen.out.flush()
    for event_or_loss in feed.follow(reconnect=_Patience(screen).reconnect):
        if isinstance(event_or_loss, Lost):
            screen.complain(event_or_loss.reason)
        else:
            _write_event(screen, event_or_loss)
            screen.out.flush()
    return EXIT_OK


class _Patience:
    """Bears a daemon that is being restarted, for a while."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._first_s = 0.0
        self._last_s = float("-inf")
        self._told = ""

    def reconnect(self, gone: Unreachable) -> None:
        """Wait a moment; raise ``gone`` after RECONNECT_WITHIN_S without a daemon."""
        now_s = time.monotonic()
        if now_s - self._last_s > 4 * RECONNECT_PAUSE_S:
            self._first_s = now_s
            self._tell_once(gone)
        if now_s - self._first_s > RECONNECT_WITHIN_S:
            raise gone
        self._last_s = now_s
        time.sleep(RECONNECT_PAUSE_S)

    def _tell_once(self, gone: Unreachable) -> None:
        """The same again and again, as of a daemon that hangs, is said once."""
        if self._told != str(gone):
            self._told = str(gone)
            self._screen.complain(f"{gone}; trying again for {RECONNECT_WITHIN_S:g} s")


def _write_event(screen: Screen, event: Event) -> None:
    match screen.output:
        case "json" | "jsonl":
            screen.document(event, compact=True)
        case "name":
            screen.out.write(_name(event) + "\n")
        case _:
            for line in event_lines(event, screen.width, FOLLOWED if screen.width else (0, 0)):
                screen.line(line)


def _draw(screen: Screen, events: list[Event]) -> None:
    """A table; on a terminal that is too narrow for it the reasons go on below their beginning, none is cut."""
    table = _table(events)
    if screen.wide or screen.width is None or sum(table.widths()) + GAP_CHARS <= screen.width:
        screen.table(table)
        return
    _, kind, about, _ = table.widths()
    for event in events:
        for line in event_lines(event, screen.width, (kind, about)):
            screen.line(line)


def event_lines(event: Event, width: int | None, columns: tuple[int, int]) -> list[str]:
    """One event: on one line where ``width`` is None, else its reason beside the rest or below it, never cut.

    ``columns``: least characters for what kind it is, and whom it is about.
    """
    at = event["at"] if width is None else _short(event["at"])
    head = "  ".join((at, event["kind"].ljust(columns[0]), _about(event).ljust(columns[1])))
    if width is None:
        return [f"{head}  {one_line(event['reason'])}"]
    indent = " " * (len(head) + 2)
    if width - len(indent) < REASON_LEAST:
        return [shortened(head.rstrip(), width), *wrapped(event["reason"], width, " " * REASON_BELOW)]
    first, *more = wrapped(event["reason"], width, indent) or [""]
    return [f"{head}  {first.strip()}".rstrip(), *more]


def _short(at: str) -> str:
    """``2026-01-02T03:04:05.678Z`` without year and fractions: ``01-02 03:04:05``, UTC as all times."""
    return at[5:19].replace("T", " ")


def _table(events: list[Event]) -> Table:
    rows = [(event["at"], event["kind"], _about(event), event["reason"]) for event in events]
    return Table(("AT", "KIND", "ABOUT", "REASON"), rows, optional=("ABOUT",))


def _about(event: Event) -> str:
    if event["worker"] is not None:
        return event["worker"]
    return "-" if event["gpu"] is None else f"GPU {event['gpu']}"


def _name(event: Event) -> str:
    return f"{event['epoch']}.{event['seq']}"


COMMANDS = {"logs": Command(logs_arguments, show_logs), "events": Command(events_arguments, show_events)}
