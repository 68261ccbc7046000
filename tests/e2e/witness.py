"""A worker that sees for itself whether it is alone: run by the daemon under test as ``witness.py DIRECTORY``.

It locks a file for its worker and one for each of its GPUs, and hands the locks down to a child in a session of its
own: whoever starts while anything of another run is left finds them locked, and says so in ``violations``.
"""

import fcntl
import os
import signal
import sys

LIFE_S = 120

directory = sys.argv[1]
marker = os.environ["GPUWARD_RUN"]
worker = marker.partition(":")[2].partition("#")[0]


def tell(name: str, line: str) -> None:
    fd = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


signal.alarm(LIFE_S)
devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
for what in (f"worker {worker}", *(f"gpu {number}" for number in devices.split(","))):
    fd = os.open(f"{directory}/{what.replace('/', '-')}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        tell("violations", f"{marker} (pid {os.getpid()}) finds {what} taken")
tell("starts", marker)
if os.fork() == 0:
    os.setsid()
    signal.alarm(LIFE_S)
signal.pause()
