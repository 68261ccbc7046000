"""One service of a Dynamo file, read as written: its keys with `Common` merged in, its `ServiceArgs`, its engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gpuward.config.decode import Section
from gpuward.config.fleet import Remark
from gpuward.interop.dynamo.keys import ENGINE_MARKS, WRITTEN_AS

Backend = Literal["vllm", "sglang", "trtllm"]


@dataclass(frozen=True, slots=True)
class Service:
    """``keys`` with hyphens for underscores; ``workers`` and ``gpu`` (per worker) as written, None if they are not."""

    name: str
    keys: Mapping[str, object]
    workers: object
    gpu: object
    env: Mapping[str, object]

    @property
    def section(self) -> Section:
        """Where complaints about it point to."""
        return section_of(self.name)

    @property
    def backend(self) -> Backend:
        """The engine that Dynamo ran in it, by name first, then by the keys that only one of them has."""
        name = self.name.lower()
        if "sglang" in name:
            return "sglang"
        if "tensorrt" in name or "trtllm" in name:
            return "trtllm"
        if self.keys.keys() & {"engine-args", "extra-engine-args", "llmapi-disaggregated-config"}:
            return "trtllm"
        return "sglang" if "model-path" in self.keys else "vllm"

    @property
    def is_worker(self) -> bool:
        """Whether it runs on GPUs: it asks for some, or it is called a worker and configures an engine."""
        if self.gpu not in (None, 0, "0"):
            return True
        return "worker" in self.name.lower() and bool(self.keys.keys() & ENGINE_MARKS)


def section_of(name: str) -> Section:
    """Where complaints about the service of this name point to."""
    return Section(f"service '{name}'", name, WRITTEN_AS)


def read_service(
    name: str, table: Mapping[str, object], common: Mapping[str, object], problems: list[Remark], warnings: list[Remark]
) -> Service:
    """Merge what ``common-configs`` lists (the service's own value wins) and take ``ServiceArgs`` apart."""
    section = section_of(name)
    keys = _hyphenated(table, section, problems)
    for key in _listed(keys.pop("common-configs", []), section, problems):
        if key in common:
            keys.setdefault(key, common[key])
        elif key not in keys:
            sentence = f"common-configs lists '{key}', which neither Common nor the service gives"
            warnings.append(section.remark("common-key-missing", sentence))
    arguments = _table(keys.pop("ServiceArgs", None), "ServiceArgs", section, problems)
    resources = _table(arguments.get("resources"), "ServiceArgs.resources", section, problems)
    unused = [f"ServiceArgs.{key}" for key in arguments if key not in {"workers", "resources", "envs"}]
    unused += [f"ServiceArgs.resources.{key}" for key in resources if key != "gpu"]
    if unused:
        sentence = f"{', '.join(unused)}: no meaning here; gpuward gives workers GPUs and limits nothing else"
        warnings.append(section.remark("key-without-meaning", sentence))
    return Service(
        name=name,
        keys=keys,
        workers=arguments.get("workers"),
        gpu=resources.get("gpu"),
        env=_environment(arguments.get("envs"), section, problems),
    )


def hyphenated(key: str) -> str:
    """A key in today's spelling; ``ServiceArgs`` is no key of an engine and stays."""
    return key.replace("_", "-")


def _hyphenated(table: Mapping[str, object], section: Section, problems: list[Remark]) -> dict[str, object]:
    keys: dict[str, object] = {}
    for key, value in table.items():
        if hyphenated(key) in keys:
            sentence = f"{key}: stands twice, once with '-' and once with '_'; keep one"
            problems.append(section.remark("duplicate-name", sentence))
        keys[hyphenated(key)] = value
    return keys


def _listed(value: object, section: Section, problems: list[Remark]) -> list[str]:
    if isinstance(value, list) and all(isinstance(key, str) for key in value):
        return [hyphenated(key) for key in value]
    problems.append(section.bad_value("common-configs", value, "must be a list of keys of Common"))
    return []


def _table(value: object, key: str, section: Section, problems: list[Remark]) -> Mapping[str, object]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    problems.append(section.bad_value(key, value, "must be a table"))
    return {}


def _environment(value: object, section: Section, problems: list[Remark]) -> Mapping[str, object]:
    """All three shapes: a table, a list of ``{name: N, value: V}``, a list of ``{N: V}``.

    Dynamo took only the table; of ``name``/``value`` pairs it made a variable called ``name``.
    """
    if value is None or isinstance(value, Mapping):
        return {name: _text(item) for name, item in (value or {}).items()}
    env: dict[str, object] = {}
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, Mapping):
            problems.append(section.bad_value("ServiceArgs.envs", value, "must be a table, or a list of tables"))
            return {}
        pairs = {str(item["name"]): item.get("value", "")} if "name" in item else item
        env.update({name: _text(content) for name, content in pairs.items()})
    return env


def _text(value: object) -> object:
    """Numbers and truth values as the file writes them; anything else is left for the pool's rules to refuse."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value
