"""How many GPUs a Dynamo service means, which ones, and whether they are all on one host."""

from __future__ import annotations

from gpuward.interop.dynamo.importing import Importing, number


def take_environment(importing: Importing) -> None:
    """Variables go along; the one that pins GPUs becomes a list of GPUs."""
    env = dict(importing.service.env)
    devices = env.pop("CUDA_VISIBLE_DEVICES", None)
    if isinstance(devices, str):
        names = [name.strip() for name in devices.split(",") if name.strip()]
        importing.table["gpus"] = [int(name) if name.lstrip("-").isdigit() else name for name in names]
        importing.warn(
            "env-became-gpus",
            f"CUDA_VISIBLE_DEVICES = '{devices}' becomes `gpus`: gpuward sets that variable for each worker "
            "(Dynamo overwrote it or lost it)",
        )
    if env:
        importing.table["env"] = env


def take_gpus(importing: Importing) -> None:
    """``gpu`` is per worker. Not given: as many as the engine uses, where Dynamo 0.2 and later pinned nothing."""
    needed = _gpus_used(importing)
    if importing.service.gpu is not None:
        gpu = importing.table["gpus-per-worker"] = number(importing.service.gpu)
        if isinstance(gpu, float):
            _refuse_gpu(importing, gpu, "a part of a GPU is asked for by share = true and gpu-memory-utilization")
        elif gpu == 0:
            _refuse_gpu(importing, gpu, "must be at least 1; Dynamo left such a worker unpinned, on GPU 0")
        return
    if "gpus-per-worker" not in importing.table and needed is not None:
        importing.warn(
            "dynamo-unpinned",
            f"ServiceArgs.resources.gpu is not given: each worker gets {needed}, what its parallel sizes ask for "
            "(Dynamo 0.2 and later left such a service unpinned, on GPU 0)",
        )


def _refuse_gpu(importing: Importing, gpu: object, must: str) -> None:
    importing.problems.append(importing.service.section.bad_value("gpus-per-worker", gpu, must))
    del importing.table["gpus-per-worker"]


def _gpus_used(importing: Importing) -> int | None:
    """Tensor x pipeline x data parallel size, engines side by side inside one worker."""
    table, keys = importing.table, importing.service.keys
    tensor, pipeline = table.get("tensor-parallel-size", 1), table.get("pipeline-parallel-size", 1)
    data = number(keys.get("data-parallel-size", 1)) if importing.service.backend == "vllm" else 1
    if not (isinstance(tensor, int) and isinstance(pipeline, int) and isinstance(data, int)):
        return None
    used = tensor * pipeline * data
    if data > 1:
        _take_data_parallel(importing, used, f"tensor {tensor} x pipeline {pipeline} x data {data} = {used}")
    return used


def _take_data_parallel(importing: Importing, used: int, sum_: str) -> None:
    given = number(importing.service.gpu)
    if given is None:
        importing.table["gpus-per-worker"] = used
    elif given != used:
        importing.refuse(
            "parallel-size-mismatch",
            f"{sum_}, but ServiceArgs.resources.gpu is {given}; it is per worker and must be {used}",
        )
    importing.warn(
        "data-parallel",
        f"{sum_} GPUs per worker; for a dense model independent workers (workers = N) are simpler and are restarted "
        "one by one",
    )


def spans_hosts(importing: Importing) -> bool:
    """Refuse what one host cannot run; its sums over GPUs mean nothing here."""
    keys = {key: number(value) for key, value in importing.service.keys.items()}
    signs = [key for key in ("nnodes", "num-nodes") if _above(keys.get(key), 1)]
    signs += [key for key in ("node-rank", "data-parallel-start-rank") if _above(keys.get(key), 0)]
    size, local = keys.get("data-parallel-size"), keys.get("data-parallel-size-local")
    if isinstance(size, int) and isinstance(local, int) and size > local:
        signs.append("data-parallel-size")
    if signs:
        said = ", ".join(f"{key} = {keys[key]}" for key in signs)
        beside = f" of which data-parallel-size-local = {local} are here" if "data-parallel-size" in signs else ""
        importing.refuse(
            "several-hosts",
            f"{said}{beside}: the service spans several hosts, gpuward runs what is on one; "
            "give each host a file with its own part",
        )
    return bool(signs)


def _above(value: object, limit: int) -> bool:
    return isinstance(value, int) and value > limit
