"""The daemon's end of the socket against clients that flood, that do not read, that say nothing, that die."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import zmq
from tests.control.served import MAX_BYTES, Rude, Served
from tests.waiting import eventually

from gpuward.control.client import Client
from gpuward.control.protocol import events_path, request
from gpuward.control.server import MESSAGES_PER_TURN


def test_ten_thousand_messages_of_garbage_are_each_answered(served: Served, rude: Rude, polite: Client) -> None:
    rude.socket.set_hwm(0)
    answered = 0

    for _ in range(100):
        for _ in range(100):
            rude.socket.send(b"garbage")
        answered += sum(json.loads(rude.socket.recv())["ok"] is False for _ in range(100))

    assert (answered, served.server.counters.bad_requests) == (10_000, 10_000)
    assert polite.call("ping")["op"] == "ping"


def test_a_flood_of_long_messages_leaves_no_memory_behind(served: Served, rude: Rude, polite: Client) -> None:
    polite.call("ping")
    before_bytes = psutil.Process().memory_info().rss
    frame = b"x" * MAX_BYTES

    for _ in range(200):  # in parts: what lies in the sender's own queue is in this process too
        for _ in range(50):
            rude.socket.send(frame)
        for _ in range(50):
            rude.socket.recv()
    assert served.server.counters.bad_requests == 10_000

    grown_bytes = psutil.Process().memory_info().rss - before_bytes
    assert grown_bytes < 100 << 20, f"{grown_bytes >> 20} MiB of 953 MiB sent"


def test_a_backlog_is_worked_off_in_parts_between_which_the_rest_of_the_daemon_has_its_turns(
    served: Served, rude: Rude
) -> None:
    let_go = served.hold()
    for number in range(200):
        rude.socket.send(request("ping", {}, str(number)))

    let_go.set()
    for _ in range(200):
        rude.socket.recv()

    turns = Counter(served.answered_at)
    assert turns.total() == 200
    assert max(turns.values()) <= MESSAGES_PER_TURN


def test_while_one_client_floods_a_polite_one_and_the_rest_of_the_daemon_go_on(
    served: Served, rude: Rude, polite: Client
) -> None:
    over = threading.Event()
    ping = request("ping", {}, "f")
    sent = 0

    def flood() -> None:
        nonlocal sent
        while not over.is_set() or sent < 2000:
            rude.socket.send(ping)
            sent += 1
            while rude.socket.poll(0):
                rude.socket.recv()

    flooding = threading.Thread(target=flood)
    flooding.start()
    eventually(lambda: sent > 100, within_s=5)
    ticks_before, spent_s = served.ticks, []
    for _ in range(200):
        asked_s = time.perf_counter()
        polite.call("ping")
        spent_s.append(time.perf_counter() - asked_s)
    ticks = served.ticks - ticks_before
    over.set()
    flooding.join()

    assert sent >= 2000
    assert statistics.median(spent_s) < 0.25
    assert sorted(spent_s)[-2] < 1.0
    assert ticks > 50


def test_connections_that_speak_no_zmtp_leave_nothing_and_delay_nobody_much(served: Served, polite: Client) -> None:
    polite.call("ping")
    process = psutil.Process()
    words = [sys.executable, "-S", str(Path(__file__).with_name("garbage.py")), served.path]
    subprocess.run([*words, "500", "0"], check=True, stdout=subprocess.DEVNULL)  # whatever grows once has grown
    before_bytes, before_fds = process.memory_info().rss, process.num_fds()
    crowd = [subprocess.Popen([*words, "2500", str(seed)], stdout=subprocess.DEVNULL) for seed in (1, 2)]

    spent_s = []
    while any(one.poll() is None for one in crowd):
        asked_s = time.perf_counter()
        polite.call("ping")
        spent_s.append(time.perf_counter() - asked_s)
    eventually(lambda: process.num_fds() <= before_fds + 2, within_s=10)

    grown_bytes = process.memory_info().rss - before_bytes
    assert grown_bytes < 8 << 20, f"{grown_bytes >> 20} MiB for 5,000 connections"
    assert statistics.median(spent_s) < 0.1
    assert served.server.counters.requests == len(spent_s) + 1


def test_a_client_that_never_reads_loses_its_answers_and_delays_nobody(
    served: Served, rude: Rude, polite: Client
) -> None:
    rude.socket.set(zmq.RCVHWM, 1)
    sent = 0
    while sent < 20_000 and served.server.counters.dropped_answers == 0:
        rude.socket.send(request("ping", {}, "x" * 200))
        sent += 1

    eventually(lambda: served.server.counters.dropped_answers > 0, within_s=5)
    assert polite.call("ping")["op"] == "ping"


def test_clients_that_die_before_their_answer_are_counted_and_harm_nobody(served: Served, polite: Client) -> None:
    for _ in range(20):
        dying = Rude(served.path)
        dying.socket.linger = 1000
        dying.socket.send(request("ping", {}, "a"))
        dying.socket.close()
        dying.context.term()

    assert polite.call("ping")["op"] == "ping"
    eventually(lambda: served.connections == 1, within_s=5)


def test_fifty_connections_without_a_greeting_are_put_out(served: Served, polite: Client) -> None:
    polite.call("ping")
    before = psutil.Process().num_fds()
    silent = [socket.socket(socket.AF_UNIX) for _ in range(50)]
    for one in silent:
        one.connect(served.path)
    eventually(lambda: served.connections == 51, within_s=5)

    assert polite.call("ping")["op"] == "ping"

    eventually(lambda: served.connections == 1, within_s=8)
    for one in silent:
        one.close()
    eventually(lambda: psutil.Process().num_fds() <= before, within_s=5)


@pytest.mark.parametrize("said", [b"GET /status HTTP/1.1\r\n\r\n" * 10, b"\xff" * 200, bytes(200), os.urandom(200)])
def test_what_is_no_zeromq_at_all_harms_nobody(served: Served, polite: Client, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(served.path)
        raw.sendall(said)

        assert polite.call("ping")["op"] == "ping"

    eventually(lambda: served.connections == 1, within_s=5)
    assert polite.call("ping")["op"] == "ping"


def test_a_subscriber_that_does_not_read_holds_nobody_up_and_can_see_what_it_lost(
    served: Served, polite: Client
) -> None:
    slow = Rude(events_path(served.path), zmq.SUB)
    slow.socket.set(zmq.RCVHWM, 10)
    slow.socket.subscribe(b"event")
    seen: list[int] = []
    while not slow.socket.poll(10):
        served.publish({"seq": 0})

    for seq in range(1, 60_000):
        served.publish({"seq": seq, "reason": "x" * 100})
    asked_s = time.perf_counter()
    polite.call("ping")
    spent_s = time.perf_counter() - asked_s
    while slow.socket.poll(200):
        seen.append(json.loads(slow.socket.recv_multipart()[1])["seq"])
    slow.close()

    assert spent_s < 5
    assert 0 < len(seen) < 60_000
    assert seen == sorted(seen)
