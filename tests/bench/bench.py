"""`make bench`: the figures of speed and memory, each with its target. About four minutes; nothing is left running.

For the comparison with supervisord and circus they must be installed in an environment of their own: .venv-bench, or
where GPUWARD_BENCH_ENV points. Figures on a busy machine say little: the load average is printed with them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import measures
from supervisors import RIVAL_PROGRAMS, STARTERS, Supervisor, rivals

MIB = 1024 * 1024
RECOVERY_TARGET_MS = {8: 60.0, 64: 80.0}
OWN_KILLS = 20
RIVAL_KILLS = 10
ROUND_TRIPS = 500
STATUS_ROUNDS = 15
IDLE_S = 20.0


@dataclass(frozen=True)
class Figure:
    """One line of the table: ``target`` is the most it may be, None where it is there for comparison only."""

    what: str
    value: float
    unit: str
    target: float | None = None
    note: str = ""

    def line(self) -> str:
        """Figure, target, verdict, note in columns."""
        target = "" if self.target is None else f"<= {self.target:g}"
        verdict = "" if self.target is None else ("PASS" if self.value <= self.target else "OVER")
        return f"{self.what:<58} {number(self.value):>9} {self.unit:<5} {target:>8} {verdict:<5} {self.note}".rstrip()


class Table:
    """Figures as they come, each printed at once."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)
        print(figure.line(), flush=True)

    def title(self, text: str) -> None:
        print(f"\n{text}", flush=True)

    def conclude(self) -> None:
        """Count the verdicts."""
        judged = [figure for figure in self.figures if figure.target is not None]
        over = [figure for figure in judged if figure.value > (figure.target or 0)]
        print(f"\n{len(judged) - len(over)} of {len(judged)} targets met", flush=True)


def number(value: float) -> str:
    """Three digits, none of them an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spread(times: list[float]) -> str:
    return f"median of {len(times)}, {number(min(times))} to {number(max(times))}"


def p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[-1]


def bench_recovery(table: Table, workers: int, names: list[str], *, kills: int, rival_kills: int) -> None:
    """How long a killed worker is away; and, with 64, what a status costs."""
    table.title(f"SIGKILL of a worker to its replacement's exec, {workers} workers")
    medians: dict[str, float] = {}
    for name in ["gpuward", *names]:
        with tempfile.TemporaryDirectory(prefix="bench-") as directory, STARTERS[name](workers, Path(directory)) as one:
            times = measures.recoveries_ms(one, kills if name == "gpuward" else rival_kills)
            medians[name] = statistics.median(times)
            target = RECOVERY_TARGET_MS[workers] if name == "gpuward" else None
            ratio = "" if name == "gpuward" else f"; {medians[name] / medians['gpuward']:.0f} x gpuward"
            table.add(Figure(f"{name}, N = {workers}", medians[name], "ms", target, spread(times) + ratio))
            if name == "gpuward" and workers == max(RECOVERY_TARGET_MS):
                bench_round_trip(table, one)


def bench_round_trip(table: Table, one: Supervisor) -> None:
    """The full status on a kept-open client."""
    times, size = measures.round_trips_ms(one, ROUND_TRIPS)
    what = "full status of 64 workers and 8 GPUs, round trip"
    table.add(Figure(what, statistics.median(times), "ms", 1.0, f"{spread(times)}; {size:,} bytes"))
    table.add(Figure(f"{what}, p99", p99(times), "ms"))


def bench_at_rest(table: Table, names: list[str]) -> None:
    """Memory and CPU at rest with 8 workers, and the status command as a whole process beside the rivals'."""
    table.title("At rest, 8 workers, GPUs sampled each second")
    with contextlib.ExitStack() as stack:
        running = []
        for name in ["gpuward", *names]:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
            running.append(stack.enter_context(STARTERS[name](8, Path(directory))))
            if name == "gpuward":
                bench_footprint(table, running[0])
        table.title("The status command as a whole process, 8 workers, output not a terminal")
        times = measures.whole_process_ms(running, STATUS_ROUNDS)
    own = statistics.median(times["gpuward"])
    for one in running:
        each = times[one.name]
        what = f"{Path(one.status_command[0]).name} status"
        table.add(Figure(what, statistics.median(each), "ms", None, spread(each)))
    for name in names:
        table.add(Figure(f"gpuctl's share of {name}'s", own / statistics.median(times[name]), "", 0.65))


def bench_footprint(table: Table, one: Supervisor) -> None:
    """What the daemon and its keepers cost while nothing happens."""
    client = measures.Client(one)
    workers = json.loads(client.status())["result"]["workers"]
    client.close()
    at_rest = measures.footprint(one, [worker["keeper_pid"] for worker in workers], IDLE_S)
    table.add(Figure("daemon, RSS", at_rest.daemon_rss_bytes / MIB, "MiB", 50.0))
    table.add(Figure("a keeper, RSS", at_rest.keeper_rss_bytes / MIB, "MiB", 10.0, "median of 8"))
    table.add(Figure("a keeper, PSS", at_rest.keeper_pss_bytes / MIB, "MiB", None, "median of 8; shared pages divided"))
    table.add(Figure("daemon and keepers, CPU per minute", at_rest.cpu_s_per_minute, "s", 0.3, f"over {IDLE_S:.0f} s"))


def bench_placement(table: Table) -> None:
    """The largest host that is promised."""
    table.title("Placement")
    times = measures.placements_ms(512, 1024, 7)
    table.add(Figure("512 workers on 1,024 GPUs", statistics.median(times), "ms", 50.0, spread(times)))


def main() -> None:
    """Run all measurements one after the other."""
    parser = argparse.ArgumentParser(description="print gpuward's figures of speed and memory")
    parser.add_argument("--quick", action="store_true", help="a quarter of the kills, no rivals")
    quick = parser.parse_args().quick
    names = [] if quick else rivals()
    load = os.getloadavg()[0]
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load average {load:.1f}, {platform.release()}")
    for missing in {"supervisord", "circus"} - set(names):
        print(f"without {missing}: " + ("--quick" if quick else f"not installed in {RIVAL_PROGRAMS.parent}"))
    table = Table()
    for workers in RECOVERY_TARGET_MS:
        kills = OWN_KILLS // 4 if quick else OWN_KILLS
        bench_recovery(table, workers, names, kills=kills, rival_kills=RIVAL_KILLS)
    bench_at_rest(table, names)
    bench_placement(table)
    table.conclude()


if __name__ == "__main__":
    main()
