"""The keeper: the small process between the daemon and one run of a worker.

Started as ``python -I -S keeper.py RUN_DIRECTORY`` with the worker's lock on descriptor 3. It takes the GPU leases,
starts the worker in a session of its own, copies its output to the log, and waits. When the worker's main process has
ended it kills every descendant that is left, reaps until nothing remains, writes how it ended, and exits. It never
decides and never restarts.

It outlives upgrades of everything else, so it imports nothing of gpuward and only the standard library, and speaks
through files in the run directory (``VERSION`` is their format). In: ``spec`` (``key value`` lines), ``argv`` and
``environ`` (NUL after each entry, as in /proc). Out, each written whole by rename: ``keeper``, ``started``, ``end``
(``key value`` lines), and ``log-lost`` when output cannot be written for the first time. Where ``end`` cannot be
written it goes beside the log, as ``LOG.end``; where that is impossible too, the exit status is END_UNWRITTEN.

``_signal`` and not ``signal``: the same functions without the enums, 0.7 MiB less in each of many keepers.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import ctypes
import errno
import fcntl
import os
import select
import sys
import time

VERSION = 1
LOCK_FD = 3
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
CHUNK_BYTES = 65536
TRACKER = b"multiprocessing.resource_tracker"
TRACKER_S = 2.0
SIGNAL_MAX = 64
IMPATIENT_S = 5.0  # after this, what cannot be killed (state D, another user's) is looked at once a second
RESERVED_BYTES = 4096
END_UNWRITTEN = 74  # exit status of a keeper that could not write the end record anywhere (EX_IOERR, sysexits.h)


PASSING_ERRORS = (errno.ENOMEM, errno.EAGAIN, errno.ETXTBSY, errno.EMFILE, errno.ENFILE, errno.ENOSPC)


class CannotStart(Exception):
    """The worker was not started; the message is one line for the end record, ``kind`` says what it was about.

    lease, record, prepare, cgroup, cwd or exec; resource where the host had too little of something.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class CannotStartNow(CannotStart):
    """The same for want of something that may come back: no fault of the worker's."""


def prctl(option: int, value: int) -> None:
    """Call prctl(2); OSError where the kernel refuses."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def read_pairs(path: str) -> dict[str, list[str]]:
    """Return the values of each key of a file of ``key value`` lines, in order."""
    with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs 1 MiB
        return pairs_in(file.read())


def pairs_in(content: bytes) -> dict[str, list[str]]:
    """Return the values of each key of such lines; only a newline ends one."""
    pairs: dict[str, list[str]] = {}
    for line in content.decode("utf-8", "surrogateescape").split("\n")[:-1]:
        key, _, value = line.partition(" ")
        pairs.setdefault(key, []).append(value)
    return pairs


def read_entries(path: str) -> list[bytes]:
    """Return the entries of a file in which each ends with NUL."""
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read().split(b"\0")[:-1]


def write_pairs(directory: str, name: str, pairs: list[tuple[str, object]]) -> None:
    """Write ``name`` whole or not at all; line ends in values become spaces."""
    temporary = f"{directory}/.{name}.new"
    lines = [f"{key} {one_line(str(value))}\n" for key, value in [("version", VERSION), *pairs]]
    content = "".join(lines).encode("utf-8", "surrogateescape")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, content) < len(content):
            raise OSError(28, "No space left on device")  # ENOSPC
        os.ftruncate(fd, len(content))  # only now: what was reserved is kept until it is ours
    finally:
        os.close(fd)
    os.rename(temporary, f"{directory}/{name}")  # noqa: PTH104


def open_lease(path: str) -> int:
    """Open a lock file that everybody may lock: never through a link, never one that has been deleted meanwhile.

    Without O_CREAT first: with it the kernel refuses a file of another user's in a sticky directory
    (fs.protected_regular). For reading: that is all that flock(2) needs of a file of another user's.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for _ in range(100):  # between the two, others may make it, or may not have opened it to all yet
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            try:
                fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                continue
            os.fchmod(fd, 0o644)  # past the umask
            return fd
        except PermissionError:
            time.sleep(0.01)
    return os.open(path, flags)


def one_line(value: str) -> str:
    """Return a value that no reader takes for more than one line; halves of characters become question marks."""
    kept = value.replace("\n", " ").replace("\r", " ")
    return "".join("?" if "\ud800" <= char < "\udc80" or "\udcff" < char <= "\udfff" else char for char in kept)


def start_ticks(pid: int) -> int:
    """Start time of a process in clock ticks since boot (field 22 of /proc/PID/stat, proc(5)); 0 where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return int(file.read().rsplit(b")", 1)[1].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def oom_kills() -> int:
    """Kills by the kernel for want of memory since boot, host-wide; 0 where it does not count (/proc/vmstat)."""
    try:
        return int(read_pairs("/proc/vmstat").get("oom_kill", ["0"])[0])
    except OSError:
        return 0


def children_of(pid: int) -> list[int]:
    """Return the direct children of a process."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123
            first = [int(word) for word in file.read().split()]
        others = [task for task in os.listdir(f"/proc/{pid}/task") if task != str(pid)]  # noqa: PTH208
        for task in others:
            with open(f"/proc/{pid}/task/{task}/children") as file:  # noqa: PTH123
                first += [int(word) for word in file.read().split()]
    except OSError:
        return []
    return first


def descendants() -> list[int]:
    """Return every process below this one, parents before their children."""
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        below = children_of(waiting.pop())
        found += below
        waiting += below
    return found


def is_tracker(pid: int) -> bool:
    """Whether a process is Python's resource tracker, which unlinks the shared memory of a program that has died."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
            return TRACKER in file.read(4096)
    except OSError:
        return False


class Log:
    """The worker's output: a file, moved to ``.1`` when it has ``max_bytes``. A full disk loses lines only."""

    def __init__(self, path: str, max_bytes: int, directory: str) -> None:
        self.path = path
        self.directory = directory
        self.max_bytes = max_bytes
        self.lost_bytes = 0
        self.written = 0
        self.fd = -1
        try:
            self.open()
        except OSError as error:
            self.tell(error)

    def open(self) -> None:
        """Open the file for appending; what fails is tried again with the next write."""
        os.makedirs(os.path.dirname(self.path), exist_ok=True)  # noqa: PTH103, PTH120
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.written = os.fstat(self.fd).st_size

    def write(self, chunk: bytes) -> None:
        """Append a chunk, or count what could not be written."""
        while chunk:
            try:
                if self.written >= self.max_bytes:
                    self.rotate()
                if self.fd < 0:
                    self.open()
                written = os.write(self.fd, chunk[: max(1, self.max_bytes - self.written)])
            except OSError as error:
                if not self.lost_bytes:
                    self.tell(error)
                self.lost_bytes += len(chunk)
                return
            self.written += written
            chunk = chunk[written:]

    def tell(self, error: OSError) -> None:
        """Have the daemon know that output is lost, where there is room for that."""
        try:
            write_pairs(self.directory, "log-lost", [("at", f"{time.time():.6f}"), ("error", error.strerror)])
        except OSError:
            return

    def rotate(self) -> None:
        """Move the full file aside; the one moved before goes, and the next write begins a new one."""
        os.close(self.fd)
        self.fd = -1
        self.written = 0
        os.rename(self.path, self.path + ".1")  # noqa: PTH104


class Keeper:
    """One run, from its directory."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.spec = read_pairs(f"{directory}/spec")
        if self.spec["version"] != [str(VERSION)]:
            raise CannotStart(
                "record", f"the run's record has version {self.spec['version'][0]}, this keeper reads {VERSION}"
            )
        self.main_pid = 0
        self.main_status: int | None = None
        self.usage: tuple[float, float, int] = (0.0, 0.0, 0)
        self.killed: set[int] = set()
        self.oom_kills_before = oom_kills()
        self.wakeup, wakeup_end = os.pipe()
        os.set_blocking(self.wakeup, False)
        os.set_blocking(wakeup_end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup_end, warn_on_full_buffer=False)

    def word(self, key: str, default: str) -> str:
        """Return the one value of a key of the spec."""
        return self.spec.get(key, [default])[0]

    def announce(self) -> None:
        """Say that a keeper exists, before anything can go wrong, and take the room for the end record."""
        pid = os.getpid()
        try:
            with open(f"{self.directory}/.end.new", "wb") as file:  # noqa: PTH123
                file.write(bytes(RESERVED_BYTES))
            write_pairs(self.directory, "keeper", [("pid", pid), ("start_ticks", start_ticks(pid))])
        except OSError as error:
            raise CannotStartNow("record", f"the keeper cannot write in {self.directory}: {error.strerror}") from None

    def take_leases(self) -> None:
        """Lock each GPU's lease file, shared or alone; the locks go when this process goes."""
        mode = fcntl.LOCK_SH if self.word("share", "no") == "yes" else fcntl.LOCK_EX
        for path in self.spec.get("lease", []):
            try:
                fcntl.flock(open_lease(path), mode | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CannotStartNow("lease", f"the lease {path} is held by another run or another daemon") from None
            except OSError as error:
                raise CannotStartNow("lease", f"the lease {path} cannot be taken: {error.strerror}") from None

    def start(self) -> int:
        """Start the worker in a session of its own; return the read end of its output pipe."""
        argv = read_entries(f"{self.directory}/argv")
        environ = dict(entry.split(b"=", 1) for entry in read_entries(f"{self.directory}/environ"))
        output, output_end = os.pipe()
        failure, failure_end = os.pipe()
        keeper_pid = os.getpid()
        self.main_pid = os.fork()
        if self.main_pid == 0:
            self.become(argv, environ, (keeper_pid, output_end, failure_end))
        os.close(output_end)
        os.close(failure_end)
        message = os.read(failure, 4096).decode("utf-8", "replace")
        os.close(failure)
        if message:
            os.waitpid(self.main_pid, 0)
            self.main_pid = 0
            kind, _, message = message.partition(" ")
            raise CannotStart(kind, message)
        os.set_blocking(output, False)
        return output

    def join_cgroup(self) -> None:
        """Move this process into the run's own cgroup, where it has one; the keeper itself stays outside its limit."""
        if self.word("cgroup", ""):
            with open(self.word("cgroup", "") + "/cgroup.procs", "w") as file:  # noqa: PTH123
                file.write("0")

    def become(self, argv: list[bytes], environ: dict[bytes, bytes], handed_down: tuple[int, int, int]) -> None:
        """Turn the forked child into the worker. Never returns."""
        keeper_pid, output_end, failure_end = handed_down
        kind, doing = "prepare", "prepare"
        try:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != keeper_pid:
                os._exit(1)  # the keeper was gone before the line above
            os.setsid()
            self.restore_defaults()
            kind, doing = "cgroup", "prepare the cgroup of"
            self.join_cgroup()
            kind, doing = "cwd", f"enter {self.word('cwd', '/')} for"
            os.chdir(self.word("cwd", "/"))
            null = os.open("/dev/null", os.O_RDONLY)
            for fd, target in ((null, 0), (output_end, 1), (output_end, 2), (failure_end, LOCK_FD)):
                os.dup2(fd, target, inheritable=target != LOCK_FD)
            failure_end = LOCK_FD
            os.closerange(LOCK_FD + 1, 1 << 20)
            kind, doing = "exec", "execute"
            os.execve(argv[0], argv, environ)  # noqa: S606 - the worker's own program
        except BaseException as error:  # noqa: BLE001 - nothing of the keeper may go on in the child
            what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            if isinstance(error, OSError) and error.errno in PASSING_ERRORS:
                kind = "resource"
            os.write(failure_end, f"{kind} cannot {doing} {argv[0].decode('utf-8', 'replace')}: {what}".encode())
        os._exit(127)

    def restore_defaults(self) -> None:
        """Give the worker the signals, the file limit and the OOM score that a program expects."""
        signal.set_wakeup_fd(-1)
        for number in range(1, SIGNAL_MAX):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                continue
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if self.word("nofile", ""):
            import resource

            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (int(self.word("nofile", "")), hard))
        with open("/proc/self/oom_score_adj", "r+") as file:  # noqa: PTH123
            wanted = int(self.word("oom_score_adj", "0"))
            if int(file.read()) < wanted:
                file.write(str(wanted))

    def reap(self) -> bool:
        """Collect every child that has ended; return whether any child is left."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.main_pid:
                self.main_status = status
                self.usage = (usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024)

    def drain(self, output: int, log: Log) -> bool:
        """Copy what the pipe holds to the log; return whether the pipe is still open."""
        while True:
            try:
                chunk = os.read(output, CHUNK_BYTES)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            log.write(chunk)
            if self.main_status is None:
                return True  # one chunk a turn: a flood must not delay the reaping

    def wait(self, output: int, log: Log) -> None:
        """Return when the main process has ended."""
        poll = select.poll()
        poll.register(self.wakeup, select.POLLIN)
        poll.register(output, select.POLLIN)
        while self.main_status is None:
            for fd, _ in poll.poll():
                if fd == self.wakeup:
                    os.read(self.wakeup, CHUNK_BYTES)
                elif not self.drain(output, log):
                    poll.unregister(output)
            self.reap()

    def kill_rest(self) -> None:
        """Kill and reap until this process has no descendant; orphans come here, for it is their subreaper.

        Resource trackers end by themselves when the others have: killed with them, they would leave shared memory
        behind (420 MB a run of vLLM), so that they have two seconds.
        """
        poll = select.poll()
        poll.register(self.wakeup, select.POLLIN)
        began = time.monotonic()
        while self.reap():
            for pid in descendants():
                if time.monotonic() < began + TRACKER_S and is_tracker(pid):
                    continue
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:  # gone; or of another user: the daemon tells who is left
                    continue
                self.killed.add(pid)
            if poll.poll(50 if time.monotonic() < began + IMPATIENT_S else 1000):
                os.read(self.wakeup, CHUNK_BYTES)

    def oom_kills(self) -> tuple[int, str]:
        """Kills for want of memory during the run, and of whom: of this run by its cgroup's count, else of the host."""
        path = self.word("cgroup", "")
        try:
            own = read_pairs(f"{path}/memory.events")["oom_kill"][0] if path else ""
        except (OSError, KeyError):
            own = ""
        return (int(own), "run") if own else (oom_kills() - self.oom_kills_before, "host")

    def end(self, log: Log | None, error: str = "", *, kind: str = "", passing: bool = False) -> int:
        """Write how the run ended; return the exit status."""
        status = self.main_status
        code = os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else ""
        number = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else ""
        kills, of = self.oom_kills()
        pairs: list[tuple[str, object]] = [
            ("at", f"{time.time():.6f}"),
            ("monotonic", f"{time.monotonic():.6f}"),
            ("code", code),
            ("signal", number),
            ("error", error),
            ("error_kind", kind),
            ("passing", "yes" if passing else "no"),
            ("user_s", f"{self.usage[0]:.3f}"),
            ("system_s", f"{self.usage[1]:.3f}"),
            ("max_rss_bytes", self.usage[2]),
            ("descendants_killed", len(self.killed)),
            ("oom_kills", kills),
            ("oom_kills_of", of),
            ("log_lost_bytes", log.lost_bytes if log else 0),
        ]
        beside, name = os.path.split(self.word("log", "/dev/null"))
        for directory, file in ((self.directory, "end"), (beside, f"{name}.end")):
            try:
                os.makedirs(directory, 0o700, exist_ok=True)  # noqa: PTH103 - somebody may have deleted it meanwhile
                write_pairs(directory, file, pairs)
            except OSError:
                continue
            return 0
        return END_UNWRITTEN

    def run(self) -> int:
        """Live through the run; return the exit status."""
        try:
            self.announce()
            self.take_leases()
            output = self.start()
        except (CannotStart, OSError) as error:
            kind = error.kind if isinstance(error, CannotStart) else "resource"
            return self.end(None, str(error), kind=kind, passing=isinstance(error, CannotStartNow))
        log = Log(self.word("log", "/dev/null"), int(self.word("log_max_bytes", "67108864")), self.directory)
        unsaid = ""
        at = [("at", f"{time.time():.6f}"), ("monotonic", f"{time.monotonic():.6f}")]
        main = [("pid", self.main_pid), ("start_ticks", start_ticks(self.main_pid))]
        try:
            write_pairs(self.directory, "started", [*main, *at])
        except OSError as error:
            os.kill(self.main_pid, signal.SIGKILL)  # nobody could ever signal it: no room, or no directory
            unsaid = f"cannot write that the worker was started: {error.strerror}"
        os.close(1)  # tells the daemon, if it still lives, to look
        self.wait(output, log)
        self.kill_rest()
        self.drain(output, log)
        status = self.end(log, unsaid, kind="resource" if unsaid else "", passing=bool(unsaid))
        if self.word("cgroup", ""):
            try:
                os.rmdir(self.word("cgroup", ""))  # noqa: PTH106
            except OSError:
                return status  # a scope: systemd removes it after us
        return status


def main() -> None:
    """Keep the run whose directory is the first argument."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(LOCK_FD, False)
    os.closerange(LOCK_FD + 1, 1 << 20)
    if os.getsid(0) != os.getpid():
        os.setsid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    sys.exit(Keeper(sys.argv[1]).run())


if __name__ == "__main__":
    main()
