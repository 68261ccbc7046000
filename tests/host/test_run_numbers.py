"""The highest run number of a name is told by whatever is left of its runs."""

from __future__ import annotations

from pathlib import Path

from gpuward.host.run_numbers import used_runs


def test_history_logs_directories_and_the_counter_are_all_asked(tmp_path: Path) -> None:
    for place in ("history/m/0/00000003.json", "logs/m/0/5.log", "logs/m/1/2.log.1", "runs/m/2/7/spec"):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "history" / "n" / "0").mkdir(parents=True)
    (tmp_path / "history" / "n" / "0" / "last-run").write_text("9\n")

    used = used_runs(tmp_path / name for name in ("history", "logs", "runs", "nowhere"))

    assert used == {"m/0": 5, "m/1": 2, "m/2": 7, "n/0": 9}


def test_what_is_no_number_of_a_run_counts_nothing(tmp_path: Path) -> None:
    for name in ("lock", ".1.log", "99999999999999999999.log", "\u0663.log", "last-run"):
        path = tmp_path / "m" / "0" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff")

    assert used_runs([tmp_path]) == {}
