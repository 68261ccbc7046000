"""A daemon that answers what the test says, on real ROUTER and PUB sockets, and the documents it answers with."""

from __future__ import annotations

import io
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from gpuward.control.protocol import events_path

GIB = 2**30
Answer = Callable[[dict[str, Any]], dict[str, Any]]


class Refuse(Exception):
    """Raised by a scripted operation: becomes an error answer."""

    def __init__(
        self, code: str, message: str = "cannot do that: 1 of 2", details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message, "details": details or {}}


class ScriptedDaemon:
    """Answers each op with ``ops[op](args)``; ``asked`` keeps every request in order."""

    def __init__(self, path: Path) -> None:
        self.socket = str(path)
        self.ops: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._events: deque[dict[str, Any]] = deque()
        self._over = threading.Event()
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._publisher = self._context.socket(zmq.XPUB)
        for socket, where in ((self._router, self.socket), (self._publisher, events_path(self.socket))):
            socket.linger, socket.rcvtimeo = 0, 5000
            socket.bind(f"ipc://{where}")
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def answers(self, op: str, *results: dict[str, Any]) -> None:
        """Answer ``op`` with these results, one after the other, the last for ever."""
        left = deque(results)
        self.ops[op] = lambda _args: left.popleft() if len(left) > 1 else left[0]

    def refuses(self, op: str, code: str, message: str = "cannot do that: 1 of 2", **details: Any) -> None:
        def answer(_args: dict[str, Any]) -> dict[str, Any]:
            raise Refuse(code, message, details)

        self.ops[op] = answer

    def publish(self, event: dict[str, Any]) -> None:
        self._events.append(event)

    def await_subscription(self) -> None:
        """Return once a subscription has taken effect; for scripted operations, which run on the daemon's thread."""
        assert self._publisher.recv() == b"\x01event"

    def args_of(self, op: str) -> list[dict[str, Any]]:
        return [args for name, args in self.asked if name == op]

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._router.close()
        self._publisher.close()
        self._context.term()

    def _serve(self) -> None:
        while not self._over.is_set():
            if self._router.poll(5):
                peer, *_, frame = self._router.recv_multipart()
                self._router.send_multipart([peer, b"", json.dumps(self._answer(json.loads(frame))).encode()])
            while self._events:
                self._publisher.send_multipart([b"event", json.dumps(self._events.popleft()).encode()])

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((request["op"], request["args"]))
        try:
            return {"v": 1, "id": request["id"], "ok": True, "result": self.ops[request["op"]](request["args"])}
        except Refuse as refusal:
            return {"v": 1, "id": request["id"], "ok": False, "error": refusal.error}


class Tty(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    scripted = ScriptedDaemon(tmp_path / "control.sock")
    yield scripted
    scripted.close()


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "NO_COLOR", "GPUWARD_SOCKET"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpuctl(
    daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run gpuctl in this process against the scripted daemon: exit code, stdout, stderr."""
    from gpuward.ctl.main import main

    def run(*argv: str, terminal: int | None = None) -> tuple[int, str, str]:
        tty = Tty()
        with monkeypatch.context() as patched:
            if terminal is not None:
                patched.setenv("COLUMNS", str(terminal))
                patched.setattr("sys.stdout", tty)
            patched.setenv("GPUWARD_SOCKET", daemon.socket)
            try:
                code = main(list(argv))
            except SystemExit as left:
                code = int(left.code or 0)
        out, err = capsys.readouterr()
        return code, tty.getvalue() or out, err

    return run


@pytest.fixture
def documents() -> Documents:
    return Documents()


class Documents:
    """Answers of a daemon, with what the test wants to be different."""

    def worker(self, name: str = "decode/0", **changes: Any) -> dict[str, Any]:
        uuid = f"GPU-51000000-0000-4000-8000-{int(name.rpartition('/')[2]):012x}"
        return {
            "name": name,
            "pool": name.partition("/")[0],
            "phase": "ready",
            "goal": "up",
            "ready": True,
            "reason": "/health answers 200 and /v1/models names the model",
            "gpus": [int(name.rpartition("/")[2])],
            "gpu_uuids": [uuid],
            "pid": 1234567,
            "keeper_pid": 1234566,
            "run": 1,
            "port": 20000,
            "restarts": 0,
            "uptime_s": 3723.5,
            "memory": [{"gpu_uuid": uuid, "used_bytes": 66 * GIB, "claim_bytes": 68 * GIB}],
            "last_exit": None,
            "next_start_at": None,
            **changes,
        }

    def broken_worker(self, name: str = "decode/1") -> dict[str, Any]:
        return self.worker(
            name,
            phase="backoff",
            ready=False,
            reason="run 3 ended with gpu-oom-startup: 67.7 GiB wanted, 12.1 GiB free; waiting 8.0 s before start 4",
            pid=None,
            uptime_s=None,
            restarts=3,
            next_start_at="2026-01-02T03:04:13Z",
            last_exit={
                "cause": "gpu-oom-startup",
                "code": 1,
                "signal": None,
                "at": "2026-01-02T03:04:05Z",
                "evidence": [
                    "ValueError: Free memory on device (12.1/79.2 GiB) on startup is less than \x1b[31mdesired"
                ],
            },
        )

    def gpu(self, index: int = 0, **changes: Any) -> dict[str, Any]:
        return {
            "index": index,
            "uuid": f"GPU-51000000-0000-4000-8000-{index:012x}",
            "name": "NVIDIA H100 80GB HBM3",
            "memory_total_bytes": 80 * GIB,
            "memory_used_bytes": 40 * GIB,
            "memory_free_bytes": 40 * GIB,
            "claimed_bytes": 60 * GIB,
            "health": "ok",
            "reason": "",
            "workers": [f"decode/{index}"],
            "foreign": [],
            "stale": False,
            **changes,
        }

    def status(self, *workers: dict[str, Any], **changes: Any) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "simulated": False,
            "daemon": {"pid": 42, "version": "0.1.0", "epoch": 7, "uptime_s": 90061.0},
            "fleet": {"revision": 3, "source": "fleet.toml", "drift": False, "drift_reason": None},
            "inventory": {"state": "ok", "reason": ""},
            "workers": list(workers),
            "gpus": [self.gpu(0), self.gpu(1)],
            **changes,
        }

    def plan(self, *workers: str, problems: tuple[str, ...] = (), warnings: tuple[str, ...] = ()) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "ok": not problems,
            "workers": [
                {"name": name, "pool": "decode", "gpus": [at], "gpu_uuids": [f"GPU-{at}"], "claim_bytes": 68 * GIB}
                for at, name in enumerate(workers)
            ],
            "problems": [{"code": "too-few-gpus", "pool": "decode", "message": text} for text in problems],
            "warnings": [{"code": "split-range", "pool": "decode", "message": text} for text in warnings],
            "gpus_needed": len(workers),
            "gpus_available": 8,
        }

    def diff(self, plan: dict[str, Any], *actions: tuple[str, str], revision: int = 3) -> dict[str, Any]:
        changes = [
            {"worker": name, "pool": "decode", "action": action, "keys": [] if action == "keep" else ["model"]}
            | {"reason": f"{name} is to {action}"}
            for name, action in actions
        ]
        return {"schema_version": 1, "revision": revision, "plan": plan, "changes": changes}

    def operation(
        self, state: str, *steps: tuple[str, str, str], version: int = 1, verb: str = "start"
    ) -> dict[str, Any]:
        workers = [
            {"name": name, "state": one, "phase": phase, "reason": f"{name} is {phase}, as 1 of 2", "evidence": []}
            for name, one, phase in steps
        ]
        return {"id": "op-1", "verb": verb, "state": state, "version": version, "workers": workers}

    def log(self, text: str, *, run: int = 1, offset: int = 0, ended: bool = False) -> dict[str, Any]:
        end = offset + len(text)
        return {
            "worker": "decode/0",
            "run": run,
            "text": text,
            "offset": offset,
            "next_offset": end,
            "size": end,
            "ended": ended,
        }

    def event(self, seq: int, epoch: int = 7, worker: str | None = "decode/0") -> dict[str, Any]:
        return {
            "epoch": epoch,
            "seq": seq,
            "at": "2026-01-02T03:04:05Z",
            "kind": "worker-ready",
            "worker": worker,
            "gpu": None,
            "reason": f"reason {seq}",
            "run": 1,
        }

    def page(self, *seqs: int, first: int = 1, following: int | None = None, epoch: int = 7) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "first_seq": first,
            "next_seq": following if following is not None else (seqs[-1] + 1 if seqs else first),
            "events": [self.event(seq, epoch) for seq in seqs],
        }
