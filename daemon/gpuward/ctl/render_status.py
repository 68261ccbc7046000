"""`gpuctl status`, `gpus` and `why` for eyes: which lines and columns, in which words."""

from __future__ import annotations

from gpuward.ctl.table import Table
from gpuward.ctl.text import bar, counted, duration, gib, gib_of, gpu_list, one_line, shortened_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpuward.control.documents import Gpu, LastExit, Run, RunMemory, Status, Why, Worker
    from gpuward.ctl.screen import Screen

BAR_CELLS = 16
WORKER_CELLS = 16
BAR_DRAWN = "█▒·"
BAR_ASCII = "#=."
QUIET_CAUSES = frozenset({"commanded"})
EVIDENCE_LINES = 3
RUNS_TOLD = 5


def draw_status(screen: Screen, status: Status, workers: list[Worker]) -> None:
    """Header, worker table, then in full what is wrong."""
    if screen.headers:
        _draw_header(screen, status)
    if not workers:
        screen.line("no workers: no fleet is applied; gpuctl apply FILE")
        return
    screen.table(workers_table(workers, wide=screen.wide))
    for worker in workers:
        _draw_trouble(screen, worker)
        for warning in worker.get("warnings", []):
            screen.sentence(warning, style="yellow")
        liveness = worker.get("liveness")
        if liveness is not None and liveness["state"] in {"partly", "asleep"}:
            screen.sentence(f"{worker['name']}: {liveness['reason']}", style="yellow")
    shown = {uuid for worker in workers for uuid in worker["gpu_uuids"]}
    for gpu in status["gpus"]:
        if len(workers) == len(status["workers"]) or gpu["uuid"] in shown:
            _draw_out_of_order(screen, gpu)


def workers_table(workers: list[Worker], *, wide: bool) -> Table:
    """One line per worker; the reason comes last."""
    extra = ("RUN", "KEEPER", "GOAL", "UUIDS", "NEXT-START") if wide else ()
    headers = ("NAME", "PHASE", "READY", "GPUS", "MEM", "PID", "PORT", "UP", "RESTARTS", *extra, "REASON")
    return Table(
        headers,
        [(*_worker_cells(worker), *(_extra_cells(worker) if wide else ()), worker["reason"]) for worker in workers],
        optional=() if wide else ("READY", "PORT", "PID", "RESTARTS", "UP"),
        right=("MEM", "PID", "PORT", "UP", "RESTARTS", "RUN", "KEEPER"),
    )


def gpus_table(gpus: list[Gpu], *, wide: bool, named: bool, glyphs: str) -> Table:
    """One line per GPU: a bar of what is used and claimed, who is on it, what others hold; ``named``: who all are."""
    extra = ("UUID", "UTIL", "TEMP", "POWER") if wide else ()
    headers = ("GPU", *extra, "NAME", "MEMORY", "USED/TOTAL", "CLAIMED", "HEALTH", "WORKERS", "FOREIGN")
    rows = [
        (
            str(gpu["index"]),
            *((gpu["uuid"], *_vitals(gpu)) if wide else ()),
            gpu["name"].removeprefix("NVIDIA "),
            bar(gpu["memory_used_bytes"], gpu["claimed_bytes"], gpu["memory_total_bytes"], BAR_CELLS, glyphs),
            gib_of(gpu["memory_used_bytes"], gpu["memory_total_bytes"]),
            gib(gpu["claimed_bytes"]),
            _health(gpu),
            ",".join(gpu["workers"]) or "-" if named else _workers(gpu),
            _foreign(gpu) if named else _foreign_sum(gpu),
        )
        for gpu in gpus
    ]
    right = ("GPU", "USED/TOTAL", "CLAIMED", "UTIL", "TEMP", "POWER")
    return Table(headers, rows, optional=() if wide else ("NAME", "CLAIMED", "MEMORY"), right=right)


def draw_gpus(screen: Screen, status: Status) -> None:
    """The GPU table, then every reason in full."""
    if screen.headers:
        _draw_notices(screen, status)
    if not status["gpus"]:
        screen.line("no GPUs are known")
        return
    named = screen.wide or screen.width is None
    screen.table(gpus_table(status["gpus"], wide=screen.wide, named=named, glyphs=_glyphs(screen)))
    for gpu in status["gpus"]:
        _draw_out_of_order(screen, gpu)
        for warning in gpu.get("warnings", []):
            screen.sentence(warning, style="yellow")
        vitals = gpu.get("vitals")
        for word in (vitals["throttled_by"] or []) if vitals is not None else []:
            screen.sentence(f"GPU {gpu['index']}: its clocks are held down by {word}", style="yellow")
        if gpu["foreign"]:
            screen.sentence(f"GPU {gpu['index']}: held by processes that are not ours: {_foreign(gpu)}", style="yellow")


def draw_why(screen: Screen, why: Why) -> None:
    """Sentences, then the last runs: a table, and below it what each held, on what evidence it ended, what followed."""
    for sentence in why["sentences"]:
        screen.sentence(sentence)
    if not why["runs"]:
        return
    told = why["runs"][:RUNS_TOLD]
    screen.line()
    screen.table(_runs_table(told))
    for run in told:
        _draw_run(screen, run, whole=run is told[0])


def ending(run: LastExit | Run) -> str:
    """Return how a run ended: ``code 1``, ``signal 9``."""
    if run["signal"] is not None:
        return f"signal {run['signal']}"
    return f"code {run['code']}" if run["code"] is not None else "no code"


def _draw_out_of_order(screen: Screen, gpu: Gpu) -> None:
    """Say what is the matter with a GPU that is lost, quarantined, cordoned or barred by its mode."""
    if gpu["reason"] and gpu["health"] != "ok":
        names_it = gpu.get("closed", gpu["health"] != "lost")
        screen.sentence(gpu["reason"] if names_it else f"GPU {gpu['index']}: {gpu['reason']}", style="yellow")


def _draw_run(screen: Screen, run: Run, *, whole: bool) -> None:
    """What the table has no room for; ``whole``: every line of the evidence, and the hint."""
    memory, evidence, hint = run.get("memory", []), run.get("evidence", []), run.get("hint", "")
    step, reason, lost_bytes = run.get("step"), run.get("reason", ""), run.get("log_lost_bytes", 0)
    if not (memory or evidence or step or hint or reason or lost_bytes):
        return
    screen.sentence(f"run {run['run']}: {run['cause']}{f': {reason}' if reason else ''}")
    if memory:
        held = ", ".join(_peak(one) for one in memory)
        screen.sentence(f"memory in GiB, peak/claim/total: {held}", indent="  ")
    for line in evidence if whole else evidence[:EVIDENCE_LINES]:
        screen.sentence(line, indent="  | ", style="dim")
    if whole and hint:
        screen.sentence(f"hint: {hint}", indent="  ")
    if step:
        screen.sentence(f"step taken: {step}", indent="  ")
    if lost_bytes:
        screen.sentence(f"{counted(lost_bytes, 'byte')} of its output were lost: the log had no room", indent="  ")


def _peak(one: RunMemory) -> str:
    name = one["gpu_uuid"] if one["gpu"] is None else f"GPU {one['gpu']}"
    return f"{name} {gib(one['peak_bytes'])}/{gib(one['claim_bytes'])}/{gib(one['total_bytes'])}"


def _draw_header(screen: Screen, status: Status) -> None:
    daemon, workers = status["daemon"], status["workers"]
    wanted = [worker for worker in workers if worker["goal"] == "up"]
    ready = sum(worker["ready"] for worker in wanted)
    stopped = f", {len(workers) - len(wanted)} stopped" if len(wanted) < len(workers) else ""
    used = sum(bool(gpu["workers"]) for gpu in status["gpus"])
    screen.line(
        f"gpuward {daemon['version']}, pid {daemon['pid']}, up {duration(daemon['uptime_s'])}: "
        f"{ready} of {counted(len(wanted), 'worker')} ready{stopped}, "
        f"{used} of {counted(len(status['gpus']), 'GPU')} in use",
        "bold",
    )
    fleet = status.get("fleet")
    if fleet is not None and fleet["revision"]:
        screen.sentence(f"fleet revision {fleet['revision']} from {fleet['source'] or 'an unknown file'}", style="dim")
    _draw_notices(screen, status)
    if fleet is not None and fleet["drift"]:
        advice = fleet.get("drift_advice") or "gpuctl diff shows how"
        screen.sentence(f"DRIFT: {fleet['drift_reason']}; {advice}", style="yellow")
    for notice in daemon.get("notices", []):
        screen.sentence(f"NOTICE: {notice}", style="yellow")
    screen.line()


def _draw_notices(screen: Screen, status: Status) -> None:
    if status["simulated"]:
        screen.line("SIMULATED: these GPUs exist only in this daemon", "bold magenta")
    inventory = status.get("inventory")
    if inventory is not None and inventory["state"] != "ok":
        screen.sentence(f"GPU facts are {inventory['state']}: {inventory['reason']}", style="bold yellow")


def _worker_cells(worker: Worker) -> tuple[str, ...]:
    return (
        worker["name"],
        worker["phase"],
        "yes" if worker["ready"] else "no",
        gpu_list(worker["gpus"]),
        _memory(worker),
        _number(worker["pid"]),
        _number(worker["port"]),
        duration(worker["uptime_s"]),
        str(worker["restarts"]),
    )


def _extra_cells(worker: Worker) -> tuple[str, ...]:
    return (
        _number(worker["run"]),
        _number(worker["keeper_pid"]),
        worker["goal"],
        ",".join(worker["gpu_uuids"]) or "-",
        worker["next_start_at"] or "-",
    )


def _memory(worker: Worker) -> str:
    memory = worker["memory"]
    if not memory:
        return "-"
    used = [one["used_bytes"] for one in memory if one["used_bytes"] is not None]
    claims = [one["claim_bytes"] for one in memory if one["claim_bytes"] is not None]
    return gib_of(sum(used) if len(used) == len(memory) else None, sum(claims) if len(claims) == len(memory) else None)


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _health(gpu: Gpu) -> str:
    return "stale" if gpu["stale"] and gpu["health"] == "ok" else gpu["health"]


def _vitals(gpu: Gpu) -> tuple[str, str, str]:
    vitals = gpu.get("vitals")
    if vitals is None:
        return ("-", "-", "-")
    busy, degrees, watts = vitals["busy_percent"], vitals["temperature_c"], vitals["power_w"]
    return (
        "-" if busy is None else f"{busy}%",
        "-" if degrees is None else f"{degrees}C",
        "-" if watts is None else f"{watts:.0f}W",
    )


def _foreign(gpu: Gpu) -> str:
    holders = [f"{one['pid']} {one['name']} {gib(one['used_bytes'])} GiB".replace("  ", " ") for one in gpu["foreign"]]
    return ", ".join(holders) or "-"


def _workers(gpu: Gpu) -> str:
    """The first worker of a GPU and how many more there are; the others stand in ``gpuctl``, by their GPUs."""
    first, *others = gpu["workers"] or ["-"]
    more = f" +{len(others)}" if others else ""
    return shortened_name(first, WORKER_CELLS - len(more)) + more


def _foreign_sum(gpu: Gpu) -> str:
    """What processes that are not ours hold in all; who they are is said below the table."""
    told = [one["used_bytes"] for one in gpu["foreign"] if one["used_bytes"] is not None]
    if not gpu["foreign"]:
        return "-"
    return f"{gib(sum(told) if len(told) == len(gpu['foreign']) else None)} GiB"


def _glyphs(screen: Screen) -> str:
    drawn = screen.is_terminal and (getattr(screen.out, "encoding", None) or "").lower().startswith("utf")
    return BAR_DRAWN if drawn else BAR_ASCII


def _draw_trouble(screen: Screen, worker: Worker) -> None:
    """Say in full why a wanted worker is not ready, and how its last run ended where that was not asked for."""
    if adapted := worker.get("adapted"):
        screen.sentence(f"{worker['name']}: adapted: {', '.join(adapted)}", style="dim")
    last = worker["last_exit"]
    unasked = last is not None and last["cause"] not in QUIET_CAUSES
    if not worker["ready"] and (worker["goal"] == "up" or unasked) and worker["reason"]:
        screen.sentence(f"{worker['name']}: {worker['reason']}", style="yellow")
    if last is None or not unasked:
        return
    screen.sentence(f"{worker['name']}: last exit {last['cause']} ({ending(last)}) at {last['at']}", style="dim")
    if not worker["ready"]:
        for line in last["evidence"][:EVIDENCE_LINES]:
            screen.sentence(line, indent="  | ", style="dim")


def _runs_table(runs: list[Run]) -> Table:
    rows = [
        (
            str(run["run"]),
            run["ended_at"],
            duration(run.get("ran_s")),
            run["cause"],
            ending(run),
            one_line(run.get("reason", "")),
        )
        for run in runs
    ]
    return Table(("RUN", "ENDED", "RAN", "CAUSE", "ENDING", "REASON"), rows, optional=("ENDING", "RAN"), right=("RUN",))
