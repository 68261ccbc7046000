"""From one Dynamo service to the keys of one pool. What cannot be kept is a warning, what cannot run a problem."""

from __future__ import annotations

from gpuward.config.fleet import Remark
from gpuward.config.pools import PoolTable, Surroundings
from gpuward.interop.dynamo.engines import take_sglang, take_trtllm, take_vllm
from gpuward.interop.dynamo.gpus import spans_hosts, take_environment, take_gpus
from gpuward.interop.dynamo.importing import Importing, number
from gpuward.interop.dynamo.service import Service


def pool_table(
    service: Service, around: Surroundings, served_model: str | None, problems: list[Remark], warnings: list[Remark]
) -> PoolTable:
    """Return the pool that does today what the service did. ``served_model``: what the file's frontend serves."""
    importing = Importing(service, around, served_model, problems, warnings)
    if service.workers is not None:
        importing.table["workers"] = number(service.workers)
    take_environment(importing)
    if service.backend == "vllm":
        take_vllm(importing)
    elif service.backend == "sglang":
        take_sglang(importing)
    else:
        take_trtllm(importing)
    if not spans_hosts(importing):
        take_gpus(importing)
    return PoolTable(name=service.name, table=importing.table, section=service.section)
