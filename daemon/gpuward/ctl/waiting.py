"""Waits for an operation and shows how it goes: one live line on a terminal, elsewhere a line per change."""

from __future__ import annotations

import time

from gpuward.control.client import Refused, Unreachable
from gpuward.control.protocol import EXIT_FAILED, EXIT_OK, EXIT_REFUSED, EXIT_TIMED_OUT
from gpuward.ctl.text import counted, duration, one_line, shortened
from gpuward.ctl.trouble import Trouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gpuward.control.client import Client
    from gpuward.control.documents import Applied, LogChunk, Operation, Step
    from gpuward.ctl.screen import Screen

LIVE_WAIT_S = 0.5
PLAIN_WAIT_S = 20.0
ANSWER_WITHIN_S = 10.0
ANSWER_LEAST_S = 1.0
DAEMON_BACK_S = 10.0
RETRY_S = 0.1
LOG_LINES = 8
LOG_MAX_BYTES = 16384
PENDING_NAMED = 5
TELLING_PHASES = frozenset({"backoff", "blocked", "failed", "releasing"})
"""Phases whose reason belongs into the progress of a plain stream."""


MOVING = frozenset({"starting", "draining", "stopping", "releasing"})
"""Phases in which something happens; the live line shows such a worker, not one that waits for it."""


class Progress:
    """What the operator sees while an operation runs; nothing where the output is for machines."""

    def __init__(self, screen: Screen) -> None:
        self.live = screen.is_terminal and screen.draws
        self._screen = screen
        self._since_s = time.monotonic()
        self._told: dict[str, tuple[str, str]] = {}

    def show(self, operation: Operation) -> None:
        """Show the latest state."""
        if self.live:
            self._screen.overwrite(shortened(self._live_line(operation), (self._screen.width or 80) - 1))
        elif self._screen.draws:
            for step in operation["workers"]:
                self._tell(step)
            self._screen.out.flush()

    def wipe(self) -> None:
        """Take the live line away."""
        if self.live:
            self._screen.overwrite("")

    def elapsed(self) -> str:
        """Return the time since the start, for people."""
        spent_s = time.monotonic() - self._since_s
        return f"{spent_s:.1f} s" if spent_s < 60 else duration(spent_s)

    def _live_line(self, operation: Operation) -> str:
        steps = operation["workers"]
        done = sum(step["state"] == "done" for step in steps)
        line = f"{operation['verb']}: {done} of {counted(len(steps), 'worker')} done{_failed(steps)}, {self.elapsed()}"
        pending = sorted(
            (one for one in steps if one["state"] == "pending"), key=lambda one: one["phase"] not in MOVING
        )
        return f"{line}; {_step_text(pending[0])}" if pending else line

    def _tell(self, step: Step) -> None:
        now = (step["state"], step["phase"])
        if self._told.get(step["name"]) != now:
            self._told[step["name"]] = now
            told = step["phase"] in TELLING_PHASES or step["state"] == "failed"
            self._screen.line(_step_text(step) if told else f"{step['name']}: {step['phase'] or step['state']}")


def finish(
    client: Client, operation_id: str, screen: Screen, timeout_s: float | None, *, applied: Applied | None = None
) -> int:
    """Wait until the operation is over and say how it went; exit 1 where it failed, 124 after ``timeout_s``.

    For machines one document is written: the operation's end, inside ``applied`` (key ``finished``) where it is given.
    """
    progress = Progress(screen)
    try:
        operation = _wait(client, operation_id, progress, timeout_s)
    except KeyboardInterrupt:
        screen.complain(f"no longer waiting; {operation_id} is still in progress (gpuctl shows how it goes)")
        raise
    finally:
        progress.wipe()
    workers = operation["workers"]
    draw = lambda: _draw_end(screen, operation, progress)  # noqa: E731 - one line, used once
    document = operation if applied is None else {**applied, "finished": operation}
    screen.listing(document, workers, [step["name"] for step in workers], draw)
    failed = [step for step in workers if step["state"] == "failed"]
    for step in failed:
        screen.complain(f"cannot {operation['verb']} {step['name']}: {step['reason'] or step['phase']}")
        screen.quote(step["evidence"] or _end_of_log(client, step))
    if failed and all(step.get("refused") for step in failed):
        return EXIT_REFUSED
    return EXIT_FAILED if failed or operation["state"] == "failed" else EXIT_OK


def _wait(client: Client, operation_id: str, progress: Progress, timeout_s: float | None) -> Operation:
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    seen = 0
    while True:
        wait_s = LIVE_WAIT_S if progress.live else PLAIN_WAIT_S
        if deadline_s is not None:
            wait_s = max(0.0, min(wait_s, deadline_s - time.monotonic()))
        patience_s = wait_s + ANSWER_WITHIN_S
        if deadline_s is not None:
            patience_s = min(patience_s, max(ANSWER_LEAST_S, deadline_s - time.monotonic()))
        operation = _news(client, {"id": operation_id, "seen": seen, "wait_s": wait_s}, patience_s, deadline_s)
        progress.show(operation)
        if operation["state"] != "running":
            return operation
        seen = operation["version"]
        if deadline_s is not None and time.monotonic() >= deadline_s:
            progress.wipe()
            raise Trouble(_not_in_time(operation, timeout_s), EXIT_TIMED_OUT)


def _news(client: Client, args: dict[str, Any], timeout_s: float, deadline_s: float | None) -> Operation:
    """Ask for news; a daemon that is restarted or upgraded meanwhile is back within seconds and knows the operation.

    Trouble, exit 124, where the daemon does not answer until ``deadline_s``.
    """
    back_until_s = None
    while True:
        try:
            news: Operation = client.call("operation", args, timeout_s=timeout_s)
        except (Unreachable, Refused) as error:
            if isinstance(error, Refused) and error.code != "busy":
                raise
            now_s = time.monotonic()
            if deadline_s is not None and now_s >= deadline_s:
                raise Trouble(f"timed out: {error}", EXIT_TIMED_OUT) from error
            back_until_s = back_until_s or now_s + DAEMON_BACK_S
            if now_s > back_until_s:
                raise
            time.sleep(RETRY_S)
        else:
            return news


def _not_in_time(operation: Operation, timeout_s: float | None) -> str:
    pending = [step for step in operation["workers"] if step["state"] == "pending"]
    failed = _failed(operation["workers"])
    shown = "; ".join(_step_text(step) for step in pending[:PENDING_NAMED])
    more = f"; and {len(pending) - PENDING_NAMED} more" if len(pending) > PENDING_NAMED else ""
    return (
        f"timed out after {timeout_s:g} s, {operation['verb']} of {counted(len(pending), 'worker')} still in progress: "
        f"{shown}{more}{failed}"
    )


def _failed(steps: list[Step]) -> str:
    """How many have failed so far, behind a comma, and who; empty for none."""
    names = [step["name"] for step in steps if step["state"] == "failed"]
    more = f" and {len(names) - PENDING_NAMED} more" if len(names) > PENDING_NAMED else ""
    return f", {len(names)} failed ({', '.join(names[:PENDING_NAMED])}{more})" if names else ""


def _step_text(step: Step) -> str:
    reason = f" ({one_line(step['reason'])})" if step["reason"] else ""
    return f"{step['name']}: {step['phase'] or step['state']}{reason}"


def _draw_end(screen: Screen, operation: Operation, progress: Progress) -> None:
    done = sum(step["state"] == "done" for step in operation["workers"])
    whole = counted(len(operation["workers"]), "worker")
    amount = whole if done == len(operation["workers"]) else f"{done} of {whole}"
    screen.line(f"{operation['verb']}: {amount} done in {progress.elapsed()}")


def _end_of_log(client: Client, step: Step) -> list[str]:
    """Return the last lines of a worker's newest run, where there are any and they tell something of a failure."""
    if step["phase"] == "ready" or step.get("refused"):
        return []
    worker = step["name"]
    try:
        chunk: LogChunk = client.call(
            "logs", {"worker": worker, "run": None, "lines": LOG_LINES, "offset": None, "max_bytes": LOG_MAX_BYTES}
        )
    except Refused:
        return []
    return chunk["text"].splitlines()[-LOG_LINES:]
