"""A process that holds memory of a simulated GPU: somebody else's, or one that carries a marker of ours."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Self

from tests.e2e.daemon import DaemonUnderTest

GIB = 1024**3
LIFE_S = "100"


class Holding:
    """Holds memory until told to leave; ``marker`` is put into its environment."""

    def __init__(self, daemon: DaemonUnderTest, gpu: int, gib: int, marker: str = "") -> None:
        environment = {"PATH": os.environ["PATH"], **({"GPUWARD_RUN": marker} if marker else {})}
        self.process = subprocess.Popen(["sleep", LIFE_S], env=environment, start_new_session=True)
        claims = daemon.root / "rt" / "sim-claims"
        claims.mkdir(parents=True, exist_ok=True)
        (claims / ".draft").write_text(f"{gpu} {gib * GIB}\n")
        (claims / ".draft").rename(claims / str(self.process.pid))

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def leave(self) -> None:
        """End, and give the memory back."""
        if self.alive:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
