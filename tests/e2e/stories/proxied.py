"""A real nginx in front of a daemon's workers, and clients that never pause before that."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.e2e.daemon import DaemonUnderTest
from tests.waiting import eventually

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

needs_nginx = pytest.mark.skipif(NGINX is None, reason="no nginx is installed")

FLEET = """
[pool.m]
model = "org/m"
workers = 2
port = {port}
min-ready-s = 0.2
{more}
"""

CONFIG = """
[endpoints]
directory = "{root}/endpoints"
on-change = ["/bin/sh", "-c", "[ ! -s {root}/nginx.pid ] || exec {nginx} -p {root} -c {root}/nginx.conf -s reload"]
settle-s = 0.5
[inventory]
sample-interval-s = 0.2
"""

PROXY = """
pid {root}/nginx.pid;
error_log {root}/nginx.log;
daemon off;
worker_processes 2;
events {{}}
http {{
    log_format told '$uri $msec $request_time $status $upstream_addr';
    access_log {root}/access.log told;
    client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;
    uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;
    include {root}/endpoints/*.nginx.conf;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://m;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_next_upstream off;
        }}
    }}
}}
"""


@dataclass
class Clients:
    """Four connections in a closed loop, two of them streaming; what became of each request.

    ``asks``: what each request says beside that; an answer without all of its ``max_tokens`` has failed.
    """

    port: int
    asks: Mapping[str, object]
    key: str = ""
    sent: int = 0
    failed: list[str] = field(default_factory=list)
    aborted: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> list[threading.Thread]:
        threads = [threading.Thread(target=self._ask, args=(number % 2 == 0,)) for number in range(4)]
        for thread in threads:
            thread.start()
        return threads

    def _ask(self, stream: bool) -> None:
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        body = json.dumps({**self.asks, **options, "prompt": "a b c", "ignore_eos": True})
        whole = re.compile(rf'"completion_tokens": ?{self.asks["max_tokens"]}\b')
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        while not self.over.is_set():
            failed = ""
            answer = ""
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                connection.request("POST", "/v1/completions", body, headers)
                response = connection.getresponse()
                answer = response.read().decode()
                if response.status != 200:
                    failed = f"{response.status} {answer[:100]}"
                elif '"abort"' not in answer and not ('"length"' in answer and whole.search(answer)):
                    failed = f"not whole: {answer[-200:]}"
                elif stream and not answer.endswith("data: [DONE]\n\n"):
                    failed = "a stream without an end"
            except (OSError, http.client.HTTPException) as error:
                failed = repr(error)
            finally:
                connection.close()
            with self.lock:
                self.sent += 1
                self.aborted += '"abort"' in answer
                self.failed += [failed] if failed else []
            if failed:
                time.sleep(0.05)  # a client that is refused does not hammer


@dataclass(frozen=True)
class Answer:
    """What nginx says of one request, in seconds since the epoch: from ``asked_s`` to ``answered_s``.

    ``refused``: nginx had nobody to send it to. ``address`` of the worker is empty then.
    """

    asked_s: float
    answered_s: float
    status: int
    address: str

    @property
    def refused(self) -> bool:
        return self.status == 502 and not self.address


def an_answer(line: str) -> Answer:
    """From a line of nginx' log: without a server that may be asked it names the upstream in place of an address."""
    _, at, took, status, address = line.split()
    return Answer(float(at) - float(took), float(at), int(status), address if ":" in address else "")


class Proxied:
    """A daemon with two workers, nginx before them, clients before that."""

    def __init__(self, daemon: DaemonUnderTest, token_s: float = 0.01) -> None:
        self.daemon = daemon
        daemon.environment["GPUWARD_SIM_TOKEN_S"] = str(token_s)
        self.port = daemon.ports + 1000
        self.asks: dict[str, object] = {"max_tokens": 40}
        self.key = ""
        self.processes: list[subprocess.Popen[bytes]] = []
        self.config = CONFIG.format(root=daemon.root, nginx=NGINX)

    def fleet(self, more: str = "") -> str:
        return FLEET.format(port=self.daemon.ports + 900, more=more)

    def start(self, fleet: str = "", *, listed: bool = True, more: str = "", ready_within_s: float = 30.0) -> None:
        daemon = self.daemon
        daemon.start(fleet or self.fleet(more), config=self.config if listed else "")
        daemon.all_ready(ready_within_s)
        if not listed:
            self._list_for_ever()
        eventually(lambda: self.upstream().count("server 127") == 2, within_s=10)
        conf = daemon.write("nginx.conf", PROXY.format(root=daemon.root, port=self.port))
        words = [str(NGINX), "-p", str(daemon.root), "-c", str(conf)]
        with (daemon.root / "nginx.out").open("wb") as out:
            self.processes.append(subprocess.Popen(words, stderr=out))
        eventually(lambda: (daemon.root / "nginx.pid").exists() and self._answers(), within_s=10)

    def _list_for_ever(self) -> None:
        (self.daemon.root / "endpoints").mkdir()
        servers = "".join(f"server 127.0.0.1:{self.daemon.ports + 900 + index};\n" for index in range(2))
        self.daemon.write("endpoints/m.nginx.conf", f"upstream m {{\n{servers}}}\n")

    def upstream(self) -> str:
        path = Path(self.daemon.root, "endpoints", "m.nginx.conf")
        return path.read_text() if path.exists() else ""

    def listed_s(self) -> float:
        """When the list was written that holds now, in seconds since the epoch."""
        return Path(self.daemon.root, "endpoints", "m.nginx.conf").stat().st_mtime

    def answers(self, clients: Clients) -> list[Answer]:
        """All answers to the clients, as nginx has them in its log."""
        path = self.daemon.root / "access.log"

        def lines() -> list[str]:
            return [line for line in path.read_text().splitlines() if line.startswith("/v1/completions ")]

        eventually(lambda: len(lines()) >= clients.sent, within_s=5)
        return [an_answer(line) for line in lines()]

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def during(self, event: Callable[[], object]) -> Clients:
        """What became of the requests that were sent before, during and after an event."""
        clients = Clients(self.port, self.asks, self.key)
        threads = clients.run()
        try:
            eventually(lambda: clients.sent >= 8, within_s=60)
            event()
            after = clients.sent + 8
            eventually(lambda: clients.sent >= after, within_s=60)
        finally:
            clients.over.set()
            for thread in threads:
                thread.join()
        print(f"sent {clients.sent}, failed {len(clients.failed)}, aborted {clients.aborted}")
        return clients

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
            process.wait(20)


def running(port: int) -> int:
    """How many requests the worker on a port works on, by its own metrics."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("vllm:num_requests_running{"))
