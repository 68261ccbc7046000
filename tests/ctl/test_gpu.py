"""gpuctl gpu, inventory, sim, and what gpus shows of health: what is sent, and what is printed."""

from __future__ import annotations

import json
from typing import Any

import pytest

VITALS = {
    "busy_percent": 97,
    "temperature_c": 81,
    "power_w": 693.5,
    "throttled_by": ["power brake"],
    "ecc_uncorrected": 0,
    "rows_pending": None,
    "rows_failed": None,
    "recovery": None,
    "compute_mode": "default",
    "mig": None,
}


def test_a_gpu_is_taken_out_of_service_with_the_reason(gpuctl: Any, daemon: Any, documents: Any) -> None:
    daemon.answers("gpu", {"gpu": documents.gpu(3, health="cordoned", reason="GPU 3 is cordoned (burns in)")})

    code, out, err = gpuctl("gpu", "cordon", "3", "--reason", "burns in")

    assert (code, out, err) == (0, "GPU 3 is cordoned (burns in)\n", "")
    assert daemon.args_of("gpu") == [{"action": "cordon", "gpu": "3", "reason": "burns in"}]


def test_what_is_refused_exits_6_and_an_unknown_gpu_4(gpuctl: Any, daemon: Any) -> None:
    daemon.refuses("gpu", "refused", "cannot clear GPU 3: it is not quarantined")
    refused = gpuctl("gpu", "clear", "3")
    daemon.refuses("gpu", "no-such-gpu", "there is no GPU 9; there are GPUs 0 to 7")
    unknown = gpuctl("gpu", "clear", "9")

    assert (refused[0], unknown[0]) == (6, 4)
    assert refused[2] == "gpuctl: cannot clear GPU 3: it is not quarantined\n"


def test_the_inventory_is_released_and_resumed(gpuctl: Any, daemon: Any) -> None:
    daemon.answers("inventory", {"state": "released", "reason": "let go by command"})

    code, out, _ = gpuctl("inventory", "release")

    assert (code, out) == (0, "inventory released: let go by command\n")
    assert daemon.args_of("inventory") == [{"action": "release"}]


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        (("xid", "3", "79"), {"fault": "xid", "gpu": "3", "value": 79.0}),
        (("lost", "3"), {"fault": "lost", "gpu": "3", "value": None}),
        (("hang", "2.5"), {"fault": "hang", "gpu": None, "value": 2.5}),
        (("foreign", "2", "30G"), {"fault": "foreign", "gpu": "2", "value": 30.0 * 2**30}),
        (("foreign", "2", "1.5GiB"), {"fault": "foreign", "gpu": "2", "value": 1.5 * 2**30}),
        (("clear",), {"fault": "clear", "gpu": None, "value": None}),
    ],
)
def test_a_fault_is_sent_with_its_gpu_and_number(
    gpuctl: Any, daemon: Any, words: tuple[str, ...], sent: dict[str, Any]
) -> None:
    daemon.answers("sim", sent)

    code, out, _ = gpuctl("sim", *words)

    assert (code, out.split()) == (0, ["simulated:", *words])
    assert daemon.args_of("sim") == [sent]


@pytest.mark.parametrize("words", [("xid", "3"), ("lost",), ("clear", "3"), ("hang", "soon"), ("melt", "3")])
def test_a_fault_that_is_misspelled_is_a_usage_error(gpuctl: Any, daemon: Any, words: tuple[str, ...]) -> None:
    code, _, err = gpuctl("sim", *words)

    assert code == 2
    assert "sim" in err
    assert daemon.args_of("sim") == []


def test_wide_shows_how_the_gpus_do_and_what_is_not_told_as_a_dash(gpuctl: Any, daemon: Any, documents: Any) -> None:
    silent = dict.fromkeys(VITALS)
    status = documents.status()
    status["gpus"] = [documents.gpu(0, vitals=VITALS), documents.gpu(1, vitals=silent), documents.gpu(2)]
    daemon.answers("status", status)

    _, out, _ = gpuctl("gpus", "-o", "wide")

    header, *rows = [line.split() for line in out.splitlines() if line.startswith(("GPU ", " "))][:4]
    columns = [header.index(name) for name in ("UTIL", "TEMP", "POWER")]
    assert [[row[column] for column in columns] for row in rows] == [["97%", "81C", "694W"], ["-"] * 3, ["-"] * 3]
    assert "GPU 0: its clocks are held down by power brake" in out


def test_what_is_true_of_a_gpu_or_a_worker_is_said_in_full(gpuctl: Any, daemon: Any, documents: Any) -> None:
    status = documents.status(documents.worker("decode/0", warnings=["decode/0 holds too much"]))
    status["gpus"] = [
        documents.gpu(0, warnings=["GPU 0 has 1.0 GiB free"], health="lost", reason="fell off"),
        documents.gpu(1, health="quarantined", reason="GPU 1 is quarantined (XID 48)"),
    ]
    daemon.answers("status", status, status)

    _, of_workers, _ = gpuctl("status")
    _, of_gpus, _ = gpuctl("gpus")

    assert "decode/0 holds too much" in of_workers
    assert "GPU 0 has 1.0 GiB free" in of_gpus
    assert "GPU 0: fell off\n" in of_gpus
    assert "GPU 1 is quarantined (XID 48)\n" in of_gpus
    assert "GPU 1: " not in of_gpus


def test_the_answer_is_there_as_json(gpuctl: Any, daemon: Any, documents: Any) -> None:
    daemon.answers("gpu", {"gpu": documents.gpu(3)})

    _, out, _ = gpuctl("gpu", "uncordon", "3", "-o", "json")

    assert json.loads(out)["gpu"]["index"] == 3
