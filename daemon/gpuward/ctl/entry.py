"""What the program ``gpuctl`` calls: until everything is imported, Ctrl-C just ends it."""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # the same functions without the enums


def main() -> int:
    """Import gpuctl, then run it; its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from gpuward.ctl.main import main as run

    return run()
