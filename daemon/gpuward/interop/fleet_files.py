"""Which format a fleet file is in: fleet TOML or the YAML of old Dynamo."""

from __future__ import annotations

import os.path
import re
from pathlib import PurePath

from gpuward.config.fleet import Fleet
from gpuward.config.fleet_file import decode_fleet_toml
from gpuward.config.model_path import PathExists

_TOML_LINE = re.compile(r"\s*(\[|[A-Za-z0-9_.\"'-]+\s*=)")


def decode_fleet(text: str, *, file: str, directory: str, path_exists: PathExists = os.path.exists) -> Fleet:
    """Return the fleet that ``text`` describes; ConfigError with all that is wrong in it.

    ``.toml`` is fleet TOML, ``.yaml`` and ``.yml`` are Dynamo's; any other name is judged by its first line.
    """
    if is_yaml(text, file):
        from gpuward.interop.dynamo.file import decode_dynamo_yaml  # most fleets are TOML and need no PyYAML

        return decode_dynamo_yaml(text, file=file, directory=directory, path_exists=path_exists)
    return decode_fleet_toml(text, file=file, directory=directory, path_exists=path_exists)


def is_yaml(text: str, file: str) -> bool:
    """Whether the file is to be read as YAML; comments and empty lines say nothing."""
    suffix = PurePath(file).suffix.lower()
    if suffix in {".yaml", ".yml", ".toml"}:
        return suffix != ".toml"
    lines = (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    first = next(lines, None)
    return first is not None and _TOML_LINE.match(first) is None
