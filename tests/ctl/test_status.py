from __future__ import annotations

import json
import re
from typing import Any

import pytest


@pytest.fixture
def two_workers(daemon: Any, documents: Any) -> dict[str, Any]:
    status: dict[str, Any] = documents.status(documents.worker(), documents.broken_worker())
    daemon.answers("status", status)
    return status


def test_status_is_what_gpuctl_does_with_no_command(gpuctl: Any, two_workers: dict[str, Any]) -> None:
    assert gpuctl()[1] == gpuctl("status")[1]


def test_status_shows_daemon_workers_reasons_and_the_unasked_exit(gpuctl: Any, two_workers: dict[str, Any]) -> None:
    code, out, err = gpuctl("status")

    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "gpuward 0.1.0, pid 42, up 1d01h: 1 of 2 workers ready, 2 of 2 GPUs in use",
        "fleet revision 3 from fleet.toml",
        "",
        "NAME      PHASE    READY  GPUS            MEM      PID   PORT     UP  RESTARTS  REASON",
        (
            "decode/0  ready    yes    0     66.0/68.0 GiB  1234567  20000  1h02m         0  "
            "/health answers 200 and /v1/models names the model"
        ),
        (
            "decode/1  backoff  no     1     66.0/68.0 GiB        -  20000      -         3  "
            "run 3 ended with gpu-oom-startup: 67.7 GiB wanted, 12.1 GiB free; waiting 8.0 s before start 4"
        ),
        "decode/1: run 3 ended with gpu-oom-startup: 67.7 GiB wanted, 12.1 GiB free; waiting 8.0 s before start 4",
        "decode/1: last exit gpu-oom-startup (code 1) at 2026-01-02T03:04:05Z",
        "  | ValueError: Free memory on device (12.1/79.2 GiB) on startup is less than  [31mdesired",
    ]


def test_json_is_the_daemons_document_unchanged(gpuctl: Any, two_workers: dict[str, Any]) -> None:
    code, out, _ = gpuctl("status", "-o", "json")

    assert (code, json.loads(out)) == (0, two_workers)


def test_jsonl_is_one_worker_a_line_each_with_the_schema_version(gpuctl: Any, two_workers: dict[str, Any]) -> None:
    _, out, _ = gpuctl("status", "-o", "jsonl")

    assert [json.loads(line) for line in out.splitlines()] == [
        {"schema_version": 1, **worker} for worker in two_workers["workers"]
    ]


def test_name_is_names_only(gpuctl: Any, two_workers: dict[str, Any]) -> None:
    assert gpuctl("status", "-o", "name")[1] == "decode/0\ndecode/1\n"


def test_wide_adds_columns_and_cuts_nothing(gpuctl: Any, two_workers: dict[str, Any]) -> None:
    _, out, _ = gpuctl("status", "-o", "wide", "--no-headers", terminal=80)

    assert "GPU-51000000-0000-4000-8000-000000000001" in out
    assert "waiting 8.0 s before start 4" in out


def test_no_headers_leaves_rows_only(gpuctl: Any, daemon: Any, documents: Any) -> None:
    daemon.answers("status", documents.status(documents.worker()))

    _, out, _ = gpuctl("status", "--no-headers")

    assert len(out.splitlines()) == 1
    assert out.startswith("decode/0  ready")


@pytest.mark.parametrize("verb", ["status", "gpus"])
@pytest.mark.parametrize("color", ["always", "never"])
def test_no_line_is_longer_than_an_80_column_terminal(
    gpuctl: Any, daemon: Any, documents: Any, verb: str, color: str
) -> None:
    foreign = [{"pid": 4711, "name": "python " + "x" * 90, "used_bytes": None}]
    gpu = documents.gpu(0, foreign=foreign, health="lost", reason="fell off the bus, " * 9, workers=["a/0", "b" * 70])
    long = documents.worker("a-pool-with-a-name-of-forty-characters-or-so/12", gpus=list(range(8)), reason="why " * 60)
    broken = documents.broken_worker()
    drift = {"revision": 3, "source": "f" * 90, "drift": True, "drift_reason": "the file has changed " * 6}
    daemon.answers("status", documents.status(long, broken, gpus=[gpu], simulated=True, fleet=drift))

    _, out, _ = gpuctl(verb, "--color", color, terminal=80)

    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert ("\x1b[" in out) is (color == "always")
    assert len(lines) < 40


def test_phases_are_coloured_and_still_words(gpuctl: Any, two_workers: dict[str, Any]) -> None:
    _, out, _ = gpuctl("status", terminal=120)

    assert "\x1b[32mready  \x1b[0m" in out
    assert "\x1b[33mbackoff\x1b[0m" in out


def test_no_color_is_honoured_on_a_terminal(
    gpuctl: Any, two_workers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    _, out, _ = gpuctl("status", terminal=120)

    assert "\x1b[" not in out


def test_a_simulated_host_a_drift_and_stale_facts_are_said_loudly(gpuctl: Any, daemon: Any, documents: Any) -> None:
    fleet = {"revision": 3, "source": "fleet.toml", "drift": True, "drift_reason": "fleet.toml differs since 12:00"}
    inventory = {"state": "stale", "reason": "NVML has not answered for 12 s"}
    daemon.answers("status", documents.status(simulated=True, fleet=fleet, inventory=inventory))

    _, out, _ = gpuctl("status")

    assert "SIMULATED" in out
    assert "DRIFT: fleet.toml differs since 12:00; gpuctl diff shows how" in out
    assert "GPU facts are stale: NVML has not answered for 12 s" in out
    assert "no workers: no fleet is applied" in out


def test_a_commanded_stop_is_no_trouble(gpuctl: Any, daemon: Any, documents: Any) -> None:
    exit_ = {"cause": "commanded", "code": 0, "signal": None, "at": "2026-01-02T03:04:05Z", "evidence": []}
    worker = documents.worker(phase="stopped", goal="down", ready=False, reason="stopped by command", last_exit=exit_)
    daemon.answers("status", documents.status(worker))

    _, out, _ = gpuctl("status", "--no-headers")

    assert len(out.splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 0),
        ({"ready": False, "phase": "starting"}, 3),
        ({"ready": False, "phase": "failed"}, 3),
        ({"ready": False, "phase": "stopped", "goal": "down"}, 0),
    ],
)
def test_check_tells_by_its_exit_code_whether_all_wanted_workers_are_ready(
    gpuctl: Any, daemon: Any, documents: Any, changes: dict[str, Any], code: int
) -> None:
    daemon.answers("status", documents.status(documents.worker(**changes)))

    assert gpuctl("status", "--check")[0] == code
    assert gpuctl("--check")[0] == code
    assert gpuctl("status")[0] == 0


def test_names_and_pools_limit_what_is_shown_and_checked(gpuctl: Any, daemon: Any, documents: Any) -> None:
    workers = [documents.worker("decode/0"), documents.broken_worker("decode/1"), documents.worker("prefill/0")]
    daemon.answers("status", documents.status(*workers))

    assert gpuctl("status", "-o", "name", "prefill", "decode/0")[1] == "decode/0\nprefill/0\n"
    assert gpuctl("status", "--check", "prefill")[0] == 0
    assert gpuctl("status", "--check", "decode")[0] == 3


def test_an_unknown_name_is_refused_with_the_names_there_are(gpuctl: Any, two_workers: dict[str, Any]) -> None:
    code, out, err = gpuctl("status", "decod")

    assert (code, out) == (4, "")
    assert err == "gpuctl: cannot show 'decod': no worker or pool has this name; there are decode/0, decode/1\n"


def test_watch_looks_again_until_interrupted(gpuctl: Any, daemon: Any, documents: Any) -> None:
    looks = 0

    def answer(_args: dict[str, Any]) -> dict[str, Any]:
        nonlocal looks
        looks += 1
        if looks > 2:
            import _thread

            _thread.interrupt_main()
        status: dict[str, Any] = documents.status(documents.worker(restarts=looks))
        return status

    daemon.ops["status"] = answer

    code, out, err = gpuctl("status", "--watch", "--interval", "0.01", "-o", "jsonl")

    assert (code, err) == (130, "")
    assert [json.loads(line)["restarts"] for line in out.splitlines()][:2] == [1, 2]


def test_gpus_shows_bars_holders_and_strangers(gpuctl: Any, daemon: Any, documents: Any) -> None:
    stranger = {"pid": 4711, "name": "sh", "used_bytes": 12 * 2**30}
    lost = documents.gpu(1, health="lost", reason="fell off the bus (XID 79)", memory_used_bytes=None, workers=[])
    daemon.answers("status", documents.status(gpus=[documents.gpu(0, foreign=[stranger]), lost]))

    code, out, _ = gpuctl("gpus")

    assert code == 0
    assert out.splitlines() == [
        "GPU  NAME            MEMORY               USED/TOTAL  CLAIMED  HEALTH  WORKERS   FOREIGN",
        "  0  H100 80GB HBM3  ########====....  40.0/80.0 GiB     60.0  ok      decode/0  4711 sh 12.0 GiB",
        "  1  H100 80GB HBM3  ============....     ?/80.0 GiB     60.0  lost    -         -",
        "GPU 0: held by processes that are not ours: 4711 sh 12.0 GiB",
        "GPU 1: fell off the bus (XID 79)",
    ]


def test_a_narrow_terminal_keeps_the_bars_and_names_the_strangers_below(
    gpuctl: Any, daemon: Any, documents: Any
) -> None:
    strangers = [{"pid": pid, "name": "python train.py --deep", "used_bytes": 3 * 2**30} for pid in (4711, 4712)]
    workers = ["PrefillWorker/0", "PrefillWorker/1"]
    daemon.answers(
        "status", documents.status(gpus=[documents.gpu(0, foreign=strangers, health="cordoned", workers=workers)])
    )

    _, out, _ = gpuctl("gpus", "--color", "never", terminal=80)

    assert out.splitlines() == [
        "GPU  MEMORY               USED/TOTAL  HEALTH    WORKERS           FOREIGN",
        "  0  ████████▒▒▒▒····  40.0/80.0 GiB  cordoned  Prefill…ker/0 +1  6.0 GiB",
        "GPU 0: held by processes that are not ours: 4711 python train.py --deep 3.0 GiB,",
        "4712 python train.py --deep 3.0 GiB",
    ]


def test_status_says_which_gpus_are_out_of_order_and_what_the_daemon_asks_to_be_mended(
    gpuctl: Any, daemon: Any, documents: Any
) -> None:
    gpus = [
        documents.gpu(0, health="quarantined", reason="GPU 0 is quarantined since noon (XID 79)"),
        documents.gpu(1, health="lost", reason="fell off the bus"),
        documents.gpu(2),
    ]
    life = {"pid": 42, "version": "0.1.0", "epoch": 7, "uptime_s": 1.0, "notices": ["fleet.json was set aside"]}
    workers = [documents.worker("decode/0"), documents.worker("decode/2")]
    daemon.answers("status", documents.status(*workers, gpus=gpus, daemon=life))

    whole = gpuctl("status")[1].splitlines()
    one = gpuctl("status", "decode/2")[1].splitlines()

    assert whole[2] == "NOTICE: fleet.json was set aside"
    assert whole[-2:] == ["GPU 0 is quarantined since noon (XID 79)", "GPU 1: fell off the bus"]
    assert one[-1].startswith("decode/2  ready")


def test_gpus_for_machines_are_whole_numbers_and_uuids(gpuctl: Any, daemon: Any, documents: Any) -> None:
    daemon.answers("status", documents.status())

    document = json.loads(gpuctl("gpus", "-o", "json")[1])

    assert (document["schema_version"], document["simulated"]) == (1, False)
    assert [gpu["memory_total_bytes"] for gpu in document["gpus"]] == [80 * 2**30] * 2
    assert gpuctl("gpus", "-o", "name")[1].splitlines() == [gpu["uuid"] for gpu in document["gpus"]]


def a_peak(gpu: int | None, uuid: str, peak_gib: int | None) -> dict[str, Any]:
    peak_bytes = None if peak_gib is None else peak_gib << 30
    return {
        "gpu": gpu,
        "gpu_uuid": uuid,
        "peak_bytes": peak_bytes,
        "claim_bytes": 72 << 30,
        "total_bytes": 80 << 30,
    }


def test_why_tells_of_the_last_five_runs_within_the_terminal(gpuctl: Any, daemon: Any, documents: Any) -> None:
    runs = [
        {
            "run": number,
            "ended_at": "2026-01-02T03:04:05Z",
            "cause": "gpu-oom-runtime",
            "code": 1,
            "signal": None,
            "reason": "ran out of memory while serving",
            "evidence": ["torch.OutOfMemoryError: " + "CUDA out of memory " * 9],
            "memory": [a_peak(gpu, f"GPU-{gpu}", peak_gib=71) for gpu in range(8)],
            "step": "max-num-batched-tokens 8192 -> 4096",
        }
        for number in range(9, 2, -1)
    ]
    worker = documents.broken_worker()
    daemon.answers("why", {"schema_version": 1, "worker": worker, "sentences": ["It waits."], "runs": runs})

    _, out, _ = gpuctl("why", "decode/1", "--color", "never", terminal=80)

    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line.startswith("run ")] == [
        f"run {number}: gpu-oom-runtime: ran out of memory while serving" for number in range(9, 4, -1)
    ]
    assert "GPU 7 71.0/72.0/80.0" in " ".join(out.split())
    assert lines.count("  step taken: max-num-batched-tokens 8192 -> 4096") == 5


def test_why_tells_sentences_then_runs_with_the_latest_evidence(gpuctl: Any, daemon: Any, documents: Any) -> None:
    run = {
        "run": 3,
        "ended_at": "2026-01-02T03:04:05Z",
        "ran_s": 12.5,
        "cause": "gpu-oom-startup",
        "code": None,
        "signal": 9,
        "reason": "67.7 GiB wanted, 12.1 GiB free",
        "hint": "lower gpu-memory-utilization to 0.1",
        "evidence": ["torch.OutOfMemoryError: CUDA out of memory"],
        "memory": [a_peak(0, "GPU-a", peak_gib=70), a_peak(None, "GPU-b", peak_gib=None)],
        "step": "gpu-memory-utilization 0.9 -> 0.87",
    }
    why = {
        "schema_version": 1,
        "worker": documents.broken_worker(),
        "sentences": ["decode/1 is backoff for 3 s.", "Next start in 5.0 s."],
        "runs": [run],
    }
    daemon.answers("why", why)

    code, out, _ = gpuctl("why", "decode/1", terminal=80)
    plain = gpuctl("why", "decode/1", "--color", "never")[1]
    document = json.loads(gpuctl("why", "decode/1", "-o", "json")[1])

    assert code == 0
    assert "\x1b[" in out
    assert plain.splitlines() == [
        "decode/1 is backoff for 3 s.",
        "Next start in 5.0 s.",
        "",
        "RUN  ENDED                 RAN  CAUSE            ENDING    REASON",
        "  3  2026-01-02T03:04:05Z  12s  gpu-oom-startup  signal 9  67.7 GiB wanted, 12.1 GiB free",
        "run 3: gpu-oom-startup: 67.7 GiB wanted, 12.1 GiB free",
        "  memory in GiB, peak/claim/total: GPU 0 70.0/72.0/80.0, GPU-b ?/72.0/80.0",
        "  | torch.OutOfMemoryError: CUDA out of memory",
        "  hint: lower gpu-memory-utilization to 0.1",
        "  step taken: gpu-memory-utilization 0.9 -> 0.87",
    ]
    assert document == why
    assert daemon.args_of("why")[0] == {"worker": "decode/1"}


def test_a_worker_whose_hangs_are_not_all_found_is_told_with_the_reason(
    gpuctl: Any, daemon: Any, documents: Any
) -> None:
    partly = {"state": "partly", "reason": "it tells no counters"}
    watched = {"state": "watched", "reason": ""}
    workers = [documents.worker("m/0", liveness=partly), documents.worker("m/1", liveness=watched)]
    daemon.answers("status", documents.status(*workers))

    _, shown, _ = gpuctl("status")

    assert "m/0: it tells no counters" in shown
    assert "m/1:" not in shown
