"""The files in etc/ are the reference of every key: they load, and no key is missing in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec import Struct, structs

from gpuward.config.fleet import Liveness, OnCause, Pool, RestartPolicy
from gpuward.config.fleet_file import decode_fleet_toml
from gpuward.config.host import HostSettings, SignatureRule
from gpuward.config.host_file import decode_host_toml

ETC = Path(__file__).parents[2] / "etc"


def text_of(name: str) -> str:
    return (ETC / name).read_text(encoding="utf-8")


def commented_in(text: str) -> str:
    """The file with its ``# key = value`` lines in force."""
    return re.sub(r"^# (?=[a-z-]+ = )", "", text, flags=re.MULTILINE)


def documented(text: str) -> set[str]:
    return {match[1] for match in re.finditer(r"^(?:# )?([a-z-]+) = ", text, flags=re.MULTILINE)}


def keys(record: type[Struct]) -> set[str]:
    return {info.encode_name for info in structs.fields(record)}


def test_the_example_fleet_loads_without_a_warning() -> None:
    fleet = decode_fleet_toml(text_of("fleet.toml"), file="fleet.toml", directory="/", path_exists=lambda _: True)

    assert [pool.name for pool in fleet.pools] == ["decode", "proxy"]
    assert fleet.warnings == ()


def test_the_example_fleet_documents_every_key_of_a_pool() -> None:
    tables = {"name", "env", "restart", "on-cause", "liveness"}

    missing = (
        (keys(Pool) | keys(RestartPolicy) | keys(OnCause) | keys(Liveness)) - documented(text_of("fleet.toml")) - tables
    )

    assert missing == set()


def test_the_example_host_settings_load_and_are_the_defaults() -> None:
    assert decode_host_toml(text_of("gpuward.toml"), file="gpuward.toml") == HostSettings()


def test_the_example_host_settings_document_every_key_under_its_section() -> None:
    sections = dict(re.findall(r"^\[(\w+)\]\n(.*?)(?=^\[|\Z)", text_of("gpuward.toml"), flags=re.MULTILINE | re.DOTALL))

    tables = [info for info in structs.fields(HostSettings) if info.name != "signatures"]
    assert list(sections) == [info.encode_name for info in tables]
    for info in tables:
        assert keys(info.type) == documented(sections[info.encode_name]), info.encode_name


def test_the_example_of_a_signature_has_every_key_and_loads() -> None:
    line = r"^#   (\[\[signatures\]\]|[a-z]+ = (?:\"[^\"]*\"|'[^']*'|false))"
    example = "\n".join(re.findall(line, text_of("gpuward.toml"), flags=re.MULTILINE))

    (rule,) = decode_host_toml(example, file="gpuward.toml").signatures

    assert rule.says == "the arena was exhausted after {mib} MiB"
    assert all(f"\n{key} = " in example for key in keys(SignatureRule))


@pytest.mark.parametrize("section", ["inventory", "ports", "limits", "watch", "xid", "logging"])
def test_the_values_in_comments_are_the_defaults(section: str) -> None:
    settings = decode_host_toml(commented_in(text_of("gpuward.toml")), file="gpuward.toml")

    assert getattr(settings, section) == getattr(HostSettings(), section)


@pytest.mark.parametrize(
    ("table", "record"), [("restart", RestartPolicy), ("on-cause", OnCause), ("liveness", Liveness)]
)
def test_the_values_in_comments_of_a_pools_tables_are_the_defaults(table: str, record: type[Struct]) -> None:
    text = re.search(rf"^\[pool\.decode\.{table}\]\n(.*?)^\[", text_of("fleet.toml"), flags=re.MULTILINE | re.DOTALL)
    assert text is not None

    fleet = decode_fleet_toml(
        f'[pool.a]\nmodel = "m"\n[pool.a.{table}]\n{commented_in(text[1])}', file="", directory="/"
    )

    assert documented(text[1]) == keys(record)
    assert getattr(fleet.pool("a"), table.replace("-", "_")) == record()
