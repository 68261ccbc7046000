"""A program that connects to a socket again and again and never speaks ZMTP, each time in another way; ends itself.

``python garbage.py PATH COUNT SEED`` prints how many connections it made.
"""

from __future__ import annotations

import random
import socket
import sys

GREETING = b"\xff" + bytes(8) + b"\x7f"
"""The first ten bytes of ZMTP 3 (rfc.zeromq.org/spec/37)."""


def one(path: str, kinds: random.Random) -> None:
    said = kinds.choice(
        (
            kinds.randbytes(kinds.randint(1, 2000)),
            b"",
            GREETING,
            GREETING + b"\x03\x00NULL" + bytes(48),
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x01\x00" + kinds.randbytes(40),
        )
    )
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        try:
            connection.connect(path)
            connection.sendall(said)
        except (BrokenPipeError, ConnectionResetError, BlockingIOError, TimeoutError):
            return


def main() -> None:
    path, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    kinds = random.Random(seed)
    for _ in range(count):
        one(path, kinds)
    print(count)


if __name__ == "__main__":
    main()
