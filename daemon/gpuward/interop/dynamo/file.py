"""Dynamo 0.x service files (`dynamo serve -f FILE`) as a fleet. Nothing is run, nothing of the disk is read.

``ServiceArgs.resources.gpu`` is per worker. A service that runs an engine is a pool; a frontend, processor, router or
planner is not, and stays visible as a warning. So does every key that means nothing today.
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping

from gpuward.config.decode import Section, shown
from gpuward.config.errors import ConfigError, one_line
from gpuward.config.fleet import Fleet, Remark
from gpuward.config.model_path import PathExists
from gpuward.config.pools import Surroundings, decode_pools
from gpuward.interop.dynamo.importing import number
from gpuward.interop.dynamo.pool import pool_table
from gpuward.interop.dynamo.service import Service, hyphenated, read_service, section_of
from gpuward.interop.yaml_text import parse_yaml

_COMMON = "Common"


def decode_dynamo_yaml(text: str, *, file: str, directory: str, path_exists: PathExists = os.path.exists) -> Fleet:
    """Return the fleet that a Dynamo file describes, pools in file order; ConfigError with all that is wrong in it.

    ``file`` is for complaints, ``directory`` (absolute) is where relative paths start.
    """
    document = parse_yaml(text, file=file)
    if "apiVersion" in document and "kind" in document:
        raise ConfigError(file, [_a_manifest(document)])
    around = Surroundings(file, directory, path_exists)
    problems: list[Remark] = []
    warnings: list[Remark] = []
    services = _services(document, problems, warnings)
    workers = [service for service in services if service.is_worker]
    warnings += [_not_a_worker(service) for service in services if not service.is_worker]
    if not workers and not problems:
        raise ConfigError(file, [_no_worker(services)])
    warnings += _shared_in_dynamo(workers)
    served = _served_model(services)
    tables = [pool_table(service, around, served, problems, warnings) for service in workers]
    return decode_pools(tables, around, problems=problems, warnings=warnings)


def _services(document: Mapping[str, object], problems: list[Remark], warnings: list[Remark]) -> list[Service]:
    common = {hyphenated(key): value for key, value in _table(_COMMON, document.get(_COMMON), problems).items()}
    return [
        read_service(name, _table(name, table, problems), common, problems, warnings)
        for name, table in document.items()
        if name != _COMMON
    ]


def _table(name: str, value: object, problems: list[Remark]) -> Mapping[str, object]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    problems.append(Section("top level", name).bad_value(name, value, "must be a table of keys; a service is 'Name:'"))
    return {}


def _not_a_worker(service: Service) -> Remark:
    sentence = (
        "runs on no GPU and is not started; Dynamo 1.x has `python -m dynamo.frontend` in its place, which can be "
        'a pool with engine = "command" and gpus-per-worker = 0'
    )
    return section_of(service.name).remark("not-a-worker-service", sentence)


def _served_model(services: list[Service]) -> str | None:
    """The first model name under which a service of the file answers."""
    names = [service.keys.get(key) for service in services for key in ("served-model-name", "model-name")]
    return next((name for name in names if isinstance(name, str) and name), None)


def _a_manifest(document: Mapping[str, object]) -> Remark:
    """Dynamo 1.x describes deployments as resources of Kubernetes (DynamoGraphDeployment)."""
    message = (
        f"a Kubernetes manifest (kind {shown(document['kind'])}): not supported, service files of Dynamo 0.x only; "
        "write a fleet file with a [pool.NAME] for each service that runs an engine"
    )
    return Remark(code="bad-value", pool=None, message=one_line(message))


def _no_worker(services: list[Service]) -> Remark:
    names = ", ".join(service.name for service in services) or "none"
    message = f"no service of this file runs an engine on GPUs (services: {names}); there is nothing to place"
    return Remark(code="bad-value", pool=None, message=one_line(message))


def _shared_in_dynamo(workers: list[Service]) -> list[Remark]:
    """The builds that knew the offset key gave one device list to all workers of a service."""
    if not any("cuda-visible-device-offset" in service.keys for service in workers):
        return []
    several = [(service, number(service.workers)) for service in workers]
    return [
        service.section.remark(
            "dynamo-shared-gpus",
            f"each of the {count} workers gets GPUs of its own (the Dynamo builds that knew "
            "cuda-visible-device-offset gave all of them the same ones)",
        )
        for service, count in several
        if isinstance(count, int) and count > 1
    ]
