"""What may be taken from under a running daemon: looked at again and again, made again where it can be, told.

For the loop's thread. A trouble is one event and a notice that ends with it. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpuward.control.server import Server, SocketInUse
from gpuward.host.daemon_log import LogTarget
from gpuward.supervisor.ends import OUTPUT_LOST
from gpuward.supervisor.equipment import Equipment
from gpuward.supervisor.loop import Supervisor

LOOK_EVERY_S = 2.0
"""Pause between two looks at directories and sockets."""

RUN_DIRECTORY_LOST = "run-directory-lost"


class Lookout:
    """Looks at the daemon's own log, its files that could not be used, its runtime directory and its sockets."""

    def __init__(self, equipment: Equipment, supervisor: Supervisor, server: Server, log: LogTarget) -> None:
        self._equipment = equipment
        self._supervisor = supervisor
        self._server = server
        self._log = log
        self._looked_at_s = 0.0
        self._made_again = 0

    def look(self, now_s: float) -> None:
        """Look at everything that is due."""
        self.tell_set_aside()
        self._tell_lost_log()
        if now_s - self._looked_at_s >= LOOK_EVERY_S:
            self._looked_at_s = now_s
            self._keep_runtime_directory()
            self._keep_sockets()
            self._look_for_run_directories()
            self._look_for_lost_output()

    def tell_set_aside(self) -> None:
        """Say which files of the state directory could not be used."""
        broken = self._equipment.records.set_aside
        while broken:
            one = broken.pop(0)
            self._supervisor.notice("set-aside", f"{one.path}: {one.reason}", str(one.path))

    def _tell_lost_log(self) -> None:
        """Have ``status`` say that the daemon's own log cannot be written, for as long as that is so."""
        log, supervisor = self._log, self._supervisor
        log.flush()
        if not log.trouble:
            supervisor.notices.pop("log-lost", None)
            return
        reason = f"gpuward's own log cannot be written ({log.trouble}): {log.dropped} lines lost so far"
        if "log-lost" not in supervisor.notices:
            supervisor.journal.note("log-lost", reason, level="warning")
        supervisor.notices["log-lost"] = f"{reason}; gpuctl events has the newest"

    def _keep_runtime_directory(self) -> None:
        """A start may have made it again before this look."""
        runtime = self._equipment.runtime
        try:
            runtime.keep()
        except OSError as error:
            reason = (
                f"the runtime directory {runtime.root} was deleted and cannot be made again ({error.strerror}): no "
                "worker can start; give another with --runtime-dir, or keep this one (loginctl enable-linger)"
            )
            self._supervisor.notice("runtime-directory-lost", reason)
            return
        self._supervisor.notice("runtime-directory-lost", "")
        if runtime.made_again != self._made_again:
            self._made_again = runtime.made_again
            reason = f"the runtime directory {runtime.root}, or part of it, was deleted: it has been made again"
            self._supervisor.journal.note("runtime-directory-made", reason, level="warning")

    def _keep_sockets(self) -> None:
        path = self._server.path
        try:
            if self._server.keep():
                reason = f"the socket {path} was deleted or replaced: it has been made again"
                self._supervisor.journal.note("socket-made", reason, level="warning")
        except (OSError, SocketInUse) as error:
            said = error.strerror if isinstance(error, OSError) else str(error)
            reason = f"the socket {path} was deleted or replaced and cannot be made again ({said}): gpuctl is not heard"
            self._supervisor.notice("socket-lost", reason)
        else:
            self._supervisor.notice("socket-lost", "")

    def _look_for_run_directories(self) -> None:
        """Notice a living run whose directory somebody deleted: the next daemon could not take it over."""
        lost = {
            name: f"run {run} of {name} has lost its directory: it goes on, but under this daemon only"
            for name, run in self._living()
            if not self._equipment.runs.in_place(name, run)
        }
        self._notice_each(RUN_DIRECTORY_LOST, lost)

    def _look_for_lost_output(self) -> None:
        """Notice a living run whose log has no room: its errors, and the line that says it is ready, are not there."""
        troubles = {name: (run, self._equipment.runs.log_trouble(name, run)) for name, run in self._living()}
        lost = {
            name: f"output of run {run} of {name} was lost ({error}): free space in {self._equipment.logs}"
            for name, (run, error) in troubles.items()
            if error
        }
        self._notice_each(OUTPUT_LOST, lost)

    def _living(self) -> list[tuple[str, int]]:
        return [(name, handle.live.run) for name, handle in self._supervisor.runner.handles.items()]

    def _notice_each(self, kind: str, reasons: Mapping[str, str]) -> None:
        """Keep a notice for each of these workers, and end those of all others."""
        for key in [key for key in self._supervisor.notices if key.startswith(f"{kind} ")]:
            if key.removeprefix(f"{kind} ") not in reasons:
                del self._supervisor.notices[key]
        for name, reason in reasons.items():
            self._supervisor.notice(kind, reason, name)
