"""The daemon's own log by structlog: fields to the journal, pretty on a terminal, JSON lines elsewhere.

Nothing that it is written to can end or delay the daemon: what is not taken is dropped and counted.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any, Literal, TypeAlias

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from gpuward.host.journald import PRIORITIES, JournalSocket, encode, is_journal
from gpuward.host.log_sink import LogSink

Style = Literal["auto", "journal", "json", "console"]

LogTarget: TypeAlias = LogSink | JournalSocket
"""Where the log goes; its ``dropped`` and ``trouble`` tell what was lost there."""


def open_log(level: str, style: Style) -> tuple[FilteringBoundLogger, LogTarget]:
    """Configure structlog for the process; return its logger, and where that writes to.

    Standard error is replaced by a stream that never blocks and never raises, for everything else that writes there.
    Where ``journal`` is asked for and there is none, the log says so and is written as JSON lines.
    """
    wanted = _fitting() if style == "auto" else style
    missing = wanted == "journal" and not JournalSocket.present()
    kind = "json" if missing else wanted
    sink = LogSink(2, _loss_as_json if kind == "json" else _loss_as_text)
    sys.stderr = sink  # what a text stream must have for print and tracebacks
    target: LogTarget = JournalSocket() if kind == "journal" else sink
    log = _configured(level, kind, target)
    if missing:
        log.warning("log-format", reason='logging.format is "journal" and there is no journal here: JSON lines instead')
    return log, target


def _loss_as_text(lines: int) -> str:
    return f"gpuward: {lines} lines of this log were lost before this one"


def _loss_as_json(lines: int) -> str:
    return json.dumps({"event": "log-lost", "level": "warning", "lines": lines})


def _fitting() -> Style:
    """The style for what standard error is."""
    if sys.stderr.isatty():
        return "console"
    ours = is_journal(sys.stderr.fileno(), os.environ) and JournalSocket.present()
    return "journal" if ours else "json"


def _configured(level: str, style: Style, target: LogTarget) -> FilteringBoundLogger:
    factory: Any = structlog.WriteLoggerFactory(file=target)  # type: ignore[arg-type]
    if isinstance(target, JournalSocket):
        factory = JournalLogger(target)
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.format_exc_info, *_last(style)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    log: FilteringBoundLogger = structlog.get_logger()
    return log


def _last(style: Style) -> list[Processor]:
    """The steps that give the style its form."""
    if style == "journal":
        return [journal_message]
    if style == "console":
        clock = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        return [clock, structlog.dev.ConsoleRenderer(pad_event_to=18, colors=sys.stderr.isatty())]
    return [structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.JSONRenderer()]


class JournalLogger:
    """What structlog ends in: every level is one `send`, the priority is a field of the message."""

    def __init__(self, socket: JournalSocket) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = socket.send

    def __call__(self, *_: object) -> JournalLogger:
        """Return itself: structlog asks for one per logger, and there is one socket."""
        return self


def journal_message(_: object, level: str, event: EventDict) -> bytes:
    """The datagram of an event: KIND, WORKER, GPU, RUN, CAUSE and what else it carries; MESSAGE says it in a line."""
    known = dict(event)
    kind, reason = str(known.pop("event", "")), known.pop("reason", None)
    known.pop("level", None)
    subject = f"{kind} {known['worker']}" if known.get("worker") else kind
    message = {
        "MESSAGE": f"{subject}: {reason}" if reason else subject,
        "PRIORITY": PRIORITIES.get(level, PRIORITIES["info"]),
        "SYSLOG_IDENTIFIER": "gpuward",
        "KIND": kind,
    }
    return encode({**message, **known})
