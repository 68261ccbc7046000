"""What applying a file leaves alone: pools that it does not name, workers that are stopped by command. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from msgspec import structs

from gpuward.config.fleet import Fleet, Remark
from gpuward.policy.fleet.changes import Change


def told_as_stopped(changes: Iterable[Change], down: Collection[str]) -> tuple[Change, ...]:
    """Changes of which those of workers that are stopped by command say that they stay so."""
    return tuple(
        replace(one, action="keep", stopped=True, reason=f"{one.reason}: it is stopped, and starts as that says")
        if one.worker in down and one.action in {"restart", "move"}
        else one
        for one in changes
    )


def with_pools_left(new: Fleet, applied: Fleet | None) -> Fleet:
    """The fleet of a file, and behind it the applied pools that the file does not name."""
    named = {pool.name for pool in new.pools}
    left = [pool for pool in applied.pools if pool.name not in named] if applied is not None else []
    return structs.replace(new, pools=(*new.pools, *left))


def told_as_left(changes: Iterable[Change], left: Collection[str]) -> tuple[Change, ...]:
    """Changes of which those of pools that the file does not name say so."""
    why = "not in the file: left as it is; --prune removes it"
    return tuple(
        replace(change, left=True, reason=why if change.action == "keep" else change.reason)
        if change.pool in left
        else change
        for change in changes
    )


def remarks_of_left(changes: Iterable[Change], left: Collection[str]) -> tuple[tuple[Remark, ...], tuple[Remark, ...]]:
    """What is to be known of pools that the file does not name, and which of them the file would not leave alone."""
    of_left = [change for change in changes if change.pool in left]
    warnings = [
        Remark(
            code="left-running",
            pool=name,
            message=f"pool '{name}' is not in the file: {_workers_of(of_left, name)}; --prune removes the pool",
        )
        for name in dict.fromkeys(change.pool for change in of_left)
    ]
    problems = [
        Remark(
            code="gpu-conflict",
            pool=change.pool,
            message=f"{change.worker} is not in the file, and the file takes its GPUs away: {change.reason}; "
            "name other GPUs in the file, add the pool to it, or remove the pool with --prune",
        )
        for change in of_left
        if change.action != "keep"
    ]
    return tuple(warnings), tuple(problems)


def _workers_of(changes: Iterable[Change], pool: str) -> str:
    names = [change.worker for change in changes if change.pool == pool]
    return f"its worker {names[0]} goes on" if len(names) == 1 else f"its {len(names)} workers go on"
