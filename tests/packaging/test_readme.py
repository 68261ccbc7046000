"""What a newcomer copies out of the README works."""

from __future__ import annotations

import json
import re
from pathlib import Path

from gpuward.plan_locally import plan_locally

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_every_fleet_of_the_readme_fits_an_8_gpu_host() -> None:
    fleets = [block for block in blocks("toml") if "[pool." in block]

    planned = [
        plan_locally({"text": text, "name": "fleet.toml", "directory": "/"}, simulate="8xH100-80GB") for text in fleets
    ]

    assert fleets
    assert [(plan["ok"], list(plan["problems"])) for plan in planned] == [(True, [])] * len(fleets), json.dumps(planned)
