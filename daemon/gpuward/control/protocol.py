"""The control protocol: what both ends of the socket must agree on.

Standard library only, and without `typing` (3.5 ms): gpuctl imports this module on every call.

Transport: ZeroMQ, DEALER (or REQ) to ROUTER on ``ipc://PATH``. One frame of UTF-8 JSON each way; an empty delimiter
frame before it is allowed. A request is ``{"v": 1, "id": STRING, "op": NAME, "args": {...}}``; every request gets
exactly one answer, ``{"v": 1, "id": STRING, "ok": true, "result": {...}}`` or
``{"v": 1, "id": STRING|null, "ok": false, "error": {"code": NAME, "message": SENTENCE, "details": {...}}}``.

Events come from a PUB socket beside it (`events_path`), two frames: topic ``event``, JSON event (see op ``events``).
A gap in ``seq`` within one ``epoch`` means loss: ask op ``events`` for what is missing. A new epoch is a new daemon
life.

Operations (args -> result); ``targets`` are worker or pool names:

- ``ping`` {} -> {"pong": true, "pid", "version", "protocol", "epoch", "open": whether it takes commands yet}
- ``status`` {} -> the document of `gpuctl status -o json`; its ``daemon.control`` counts what came over this socket and
  what could not be answered as asked (`server.Counters`)
- ``plan`` {FILE} -> the document of `gpuctl plan -o json`
- ``diff`` {FILE} -> {"schema_version", "revision", "plan": PLAN, "changes": [CHANGE]}
- ``apply`` {FILE, "expected_revision": int|null} -> {"schema_version", "revision", "plan", "changes",
  "operation": ID|null, "changed": whether it is a new revision}
- ``reload`` {} -> as apply, of the file that the daemon was started with; it prunes
- ``start`` / ``stop`` / ``restart`` {"targets": [..], "all": bool} -> {"operation": ID, "workers": [names]}
- ``reset`` {"targets": [..], "all": bool} -> as restart; undoes what `on-oom = "adapt"` has lowered, ``workers`` are
  those that had something lowered
- ``roll`` {"pool", "file": {FILE}|null} -> as restart; one worker after the other, the first failure ends it. With
  ``file`` the pool gets the definition there (nothing else may change), and goes back to its own after a failure
- ``scale`` {"pool", "workers"} -> as apply
  ``stop``, ``restart``, ``reset``, ``roll``, ``scale`` and ``reload`` take "dry_run": nothing is done, the answer tells
  ``workers`` (or, as diff, plan and changes) and "foresight": {"stopped", "restarted", "rolled": [ready workers],
  "without": [pools], "about_s", "dependents"}, which diff has too. They and ``apply`` take "force": without it workers
  that would not come back are not stopped, error ``would-not-come-back``
- ``operation`` {"id", "seen": int, "wait_s": float <= 30} -> {"id", "verb", "state": "running"|"done"|"failed",
  "version": int, "workers": [{"name", "state": "pending"|"done"|"failed", "phase", "reason",
  "evidence": [the lines of the log that tell why, where it failed]}]}; answers when ``version`` > ``seen`` or after
  ``wait_s``
- ``logs`` {"worker", "run": int|null, "lines": int|null, "offset": int|null, "max_bytes"} -> {"worker", "run", "text",
  "offset", "next_offset", "size", "ended": bool}; with ``lines`` the last lines, with ``offset`` the bytes from there
  (-1: from the end); ``ended``: the run is over, nothing will be added
- ``events`` {"since": int|null, "limit": int, "worker": NAME|null} -> {"epoch", "first_seq", "next_seq",
  "events": [EVENT]}; at most ``limit`` events, oldest first: the newest ones with ``since`` null, else from ``since``
  on. ``first_seq`` is the oldest that the daemon still has (of any worker), ``next_seq`` the one that the next event
  will get; ``worker`` may be a pool
- ``detach`` {} -> {"pid", "workers": [names of those that go on]}; the daemon ends, its workers do not; administrators
- ``reexec`` {} -> {"pid", "workers", "from_version", "version"}; the installed version goes on in the same process,
  under a new epoch; refused where it cannot be run; administrators
- ``why`` {"worker"} -> {"schema_version", "worker": WORKER, "sentences": [..], "fix": TOML,
  "runs": [RUN, newest first]}; ``fix``: keys for the fleet file that make what was lowered permanent, or empty
- ``gpu`` {"action": "cordon"|"uncordon"|"clear", "gpu": index|UUID, "reason"} -> {"gpu": GPU as in status}
- ``inventory`` {"action": "release"|"resume"} -> {"state", "reason"}
- ``sim`` {"fault": "xid"|"lost"|"hang"|"foreign"|"leak"|"temperature"|"clear", "gpu": index|UUID|null,
  "value": number|null} -> the same; only on a simulated host

FILE is ``{"text", "name", "directory", "prune": bool}``: the client reads the file, the daemon needs no access to it;
``directory`` is absolute; applied pools that the file does not name are left as they are, or with ``prune`` stopped and
removed (`reload` prunes). CHANGE is ``{"worker", "pool", "action": "start"|"stop"|"restart"|"keep"|"move",
"keys": [changed keys], "differences": [{"key", "before", "after"}], "left": the pool is not in the file, "reason"}``.
EVENT is ``{"epoch", "seq", "at" (RFC 3339), "kind", "worker"|null, "gpu"|null, "reason", "run"|null}``.
RUN is an ended run: ``{"run", "ended_at", "ran_s", "cause", "code"|null, "signal"|null, "reason", "hint",
"evidence": [lines]}`` and what else is on record of it.
"""

from __future__ import annotations

import json

PROTOCOL_VERSION = 1
SCHEMA_VERSION = 1
DEFAULT_SOCKET = "/run/gpuward/control.sock"
SOCKET_PATH_MAX_BYTES = 107
"""Longest path that fits ``sockaddr_un`` (Linux unix(7): 108 bytes with the NUL)."""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_READY = 3
EXIT_NO_SUCH = 4
EXIT_UNREACHABLE = 5
EXIT_REFUSED = 6
EXIT_NOT_PERMITTED = 7
EXIT_TIMED_OUT = 124

EXIT_BY_ERROR = {
    "bad-request": EXIT_USAGE,
    "bad-protocol": EXIT_USAGE,
    "bad-file": EXIT_REFUSED,
    "refused": EXIT_REFUSED,
    "revision-changed": EXIT_REFUSED,
    "would-not-come-back": EXIT_REFUSED,
    "no-such-worker": EXIT_NO_SUCH,
    "no-such-gpu": EXIT_NO_SUCH,
    "no-such-operation": EXIT_NO_SUCH,
    "not-permitted": EXIT_NOT_PERMITTED,
    "busy": EXIT_FAILED,
    "shutting-down": EXIT_FAILED,
    "failed": EXIT_FAILED,
}
"""Exit code of gpuctl for each error code of an answer."""


def events_path(socket: str) -> str:
    """Path of the PUB socket beside the control socket at ``socket``."""
    return socket.removesuffix(".sock") + ".pub"


def request(op: str, args: dict[str, object], request_id: str) -> bytes:
    """Return the one frame of a request."""
    return json.dumps({"v": PROTOCOL_VERSION, "id": request_id, "op": op, "args": args}).encode()
