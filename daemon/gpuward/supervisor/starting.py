"""What starting a run takes: the pinned command, free ports, the keeper's spec, the marker. Starts nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from gpuward.config.fleet import Pool
from gpuward.engines.build import is_simulated, launch
from gpuward.engines.launch import CannotLaunch, Devices, Launch
from gpuward.engines.programs import is_executable
from gpuward.host.ports import listener, listening
from gpuward.host.runs import RunSpec
from gpuward.policy.placement.ports import PortsExhausted, assign
from gpuward.policy.worker.life import StartRefused, Worker
from gpuward.supervisor.equipment import Equipment


def planned(equipment: Equipment, worker: Worker, pool: Pool) -> Launch:
    """The command of a worker's next run, pinned to its GPUs as they are numbered now; CannotLaunch says why not."""
    by_uuid = {gpu.uuid: gpu.index for gpu in equipment.sampler.latest.gpus}
    missing = [uuid for uuid in worker.run_uuids if uuid not in by_uuid]
    if missing:
        raise CannotLaunch(f"cannot pin {worker.name}: GPU {missing[0]} is not in the inventory", "pin")
    devices = Devices(indices=tuple(by_uuid[uuid] for uuid in worker.run_uuids), uuids=worker.run_uuids)
    settings = equipment.settings.ports
    first = worker.port_block or settings.first
    ports = range(first, first + settings.per_worker)
    return launch(pool, worker.name, worker.index, devices, ports, equipment.context)


def launch_problem(equipment: Equipment, worker: Worker, pool: Pool, ours: Collection[int | None]) -> str:
    """Why the worker's next run could not be started, as this host is now; empty where nothing is known that would.

    ``ours``: ports that living workers serve on.
    """
    try:
        plan = planned(equipment, replace(worker, run_uuids=worker.device_uuids), pool)
    except CannotLaunch as error:
        return str(error)
    if not is_executable(plan.argv[0]):
        return f"there is no program {plan.argv[0]}"
    if plan.working_directory is not None and not Path(plan.working_directory).is_dir():
        return f"there is no directory {plan.working_directory} (working-directory)"
    simulated = is_simulated(pool, equipment.context)
    if pool.model is not None and not simulated and pool.model.startswith("/") and not Path(pool.model).exists():
        return f"there is no model at {pool.model}"
    stranger = listener(plan.port) if pool.port is not None and plan.port and plan.port not in ours else None
    if stranger is not None:
        return f"port {plan.port}: pid {stranger.pid or '?'} ({stranger.name or 'unknown'}) listens on it"
    return ""


def port_taken(equipment: Equipment, worker: Worker, pool: Pool, blocks: Mapping[str, int]) -> StartRefused | None:
    """Where somebody has its port, a worker waits for the one that its pool names, or takes other ports.

    ``blocks``: first port of every worker's block. A block on which a run found a port taken is not used again: a
    server that has bound and does not listen yet (a vLLM that loads) is seen by nobody who looks for listeners.
    """
    holder = listener(worker.port) if worker.port is not None else None
    if holder is not None:
        whose = f"port {worker.port}: pid {holder.pid or '?'} ({holder.name or 'unknown'}) listens on it"
    elif pool.port is None and worker.port is not None and worker.port_block in worker.shunned_blocks:
        whose = f"port {worker.port}: an earlier run found it, or one of its block, taken"
    else:
        return None
    if pool.port is not None:
        return StartRefused(worker.run, f"waits for {whose}", kind="port")
    others = {name: block for name, block in blocks.items() if name != worker.name}
    busy = {*worker.shunned_blocks, *(socket.port for socket in listening())}
    try:
        block = assign(blocks, equipment.settings.ports, others, busy)[worker.name]
    except PortsExhausted as error:
        return StartRefused(worker.run, f"waits for {whose}; {error}", kind="port")
    return StartRefused(worker.run, f"moves to port {block} from {whose}", (block, block), "ports-moved")


def marker(equipment: Equipment, worker: Worker) -> str:
    """What every process of a worker's run carries in its environment."""
    return f"GPUWARD_RUN={equipment.instance}:{worker.name}#{worker.run}"


def known_marker(equipment: Equipment, worker: Worker) -> str:
    """The marker that a run was started with; the instance may be another since (its file was lost)."""
    known = equipment.runs.spec(worker.name, worker.run).get("marker")
    return known[0] if known else marker(equipment, worker)


def run_spec(equipment: Equipment, worker: Worker, pool: Pool, plan: Launch) -> RunSpec:
    """Everything that the keeper of the worker's next run needs to know."""
    mark = marker(equipment, worker)
    key, _, value = mark.partition("=")
    sockets = equipment.runs.sockets(worker.name, worker.run)
    own = {plan.sockets_variable: str(sockets)} if plan.sockets_variable and sockets else {}
    return RunSpec(
        worker=worker.name,
        run=worker.run,
        argv=plan.argv,
        environment={**plan.env, **own, key: value},
        working_directory=plan.working_directory or "/",
        leases=tuple(path for uuid in worker.run_uuids for path in equipment.leases.paths(uuid)),
        share=pool.share,
        log=equipment.log_path(worker.name, worker.run),
        log_max_bytes=equipment.settings.limits.log_max_bytes,
        gpu_uuids=worker.run_uuids,
        port=plan.port,
        marker=mark,
        pool=pool,
        definition=worker.definition,
        seat=equipment.cgroups.seat(worker.name, worker.run, pool.memory_max),
    )


def prune_logs(equipment: Equipment, worker: Worker) -> None:
    """Keep the logs of the newest runs only."""
    oldest = worker.run - equipment.settings.limits.log_keep_runs
    directory = equipment.log_path(worker.name, worker.run).parent
    for path in directory.glob("*.log*"):
        number = path.name.partition(".")[0]
        if number.isdecimal() and int(number) <= oldest:
            with suppress(OSError):
                path.unlink()
