"""A worker that hangs up however it likes is one that cannot be reached, nothing else."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from gpuward.host.address import Address
from gpuward.host.http import BadAnswer, get

TRIES = 5000

RESETS = """
import socket, struct
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
listener.setblocking(False)
while True:
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        continue
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
"""


def test_a_connection_that_is_reset_at_once_is_an_oserror_wherever_it_meets_the_request() -> None:
    async def ask(port: int) -> int:
        resets = 0
        for _ in range(TRIES):
            try:
                await get(Address(host="127.0.0.1", port=port, path="/"), 5.0)
            except (OSError, BadAnswer):
                resets += 1
        return resets

    with subprocess.Popen([sys.executable, "-S", "-c", RESETS], stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None
        try:
            assert asyncio.run(ask(int(listener.stdout.readline()))) == TRIES
        finally:
            listener.kill()
