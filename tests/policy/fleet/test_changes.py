"""What a changed fleet does to each worker: no more than it must."""

from __future__ import annotations

import pytest
from msgspec import structs

from gpuward.config.fleet import Fleet, Pool, RestartPolicy
from gpuward.policy.fleet.changes import Change, compare
from gpuward.policy.gpus.inventory import Gpu, Snapshot
from gpuward.policy.placement.place import place
from gpuward.policy.worker.definition import as_digested_now, definition, first_definition
from gpuward.policy.worker.life import Worker

HOST = Snapshot(
    provider="simulated",
    state="ok",
    taken_at_s=0.0,
    gpus=tuple(
        Gpu(index=index, uuid=f"GPU-{index}", name="H100", pci_bus_id="", total_bytes=80 * 1024**3)
        for index in range(8)
    ),
)


def a_pool(name: str = "decode", **keys: object) -> Pool:
    return Pool(name=name, **{"model": "m", "workers": 2, **keys})  # type: ignore[arg-type]


def changes(old: list[Pool] | None, new: list[Pool]) -> dict[str, Change]:
    before = place(old or [], HOST)
    devices = {worker.name: worker.gpu_uuids for worker in before.workers}
    plan = place(new, HOST, current=devices)
    old_fleet = None if old is None else Fleet(pools=tuple(old))
    return {change.worker: change for change in compare(old_fleet, Fleet(pools=tuple(new)), devices, plan)}


def actions(old: list[Pool] | None, new: list[Pool]) -> dict[str, str]:
    return {name: change.action for name, change in changes(old, new).items()}


def test_the_first_fleet_starts_everybody() -> None:
    found = changes(None, [a_pool()])

    assert [change.action for change in found.values()] == ["start", "start"]
    assert found["decode/1"].reason == "new worker on GPU 1"


def test_the_same_fleet_keeps_everybody_and_names_no_key() -> None:
    found = changes([a_pool()], [a_pool()])

    assert [(change.action, change.keys) for change in found.values()] == [("keep", ()), ("keep", ())]


def test_scaling_keeps_the_survivors_and_starts_or_stops_the_rest() -> None:
    up = actions([a_pool()], [a_pool(workers=3)])
    down = changes([a_pool()], [a_pool(workers=1)])

    assert up == {"decode/0": "keep", "decode/1": "keep", "decode/2": "start"}
    assert {name: change.action for name, change in down.items()} == {"decode/0": "keep", "decode/1": "stop"}
    assert down["decode/0"].keys == ("workers",)
    assert down["decode/1"].reason == "pool 'decode' goes from 2 to 1 workers"


@pytest.mark.parametrize(
    "keys",
    [
        {"restart": RestartPolicy(mode="never")},
        {"start_timeout_s": 9.0},
        {"stop_timeout_s": 9.0},
        {"depends_on": ("other",)},
        {"gpus_per_worker": 1},
        {"gpus_per_worker": 1, "tensor_parallel_size": 1},
        {"gpus": (0, 1)},
        {"first_gpu": 0},
    ],
)
def test_a_key_that_the_process_never_sees_keeps_it_and_is_listed(keys: dict[str, object]) -> None:
    found = changes([a_pool()], [a_pool(**keys)])

    assert {change.action for change in found.values()} == {"keep"}
    assert found["decode/0"].keys == tuple(info.encode_name for info in structs.fields(Pool) if info.name in keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"model": "other"},
        {"engine": "simulated"},
        {"max_model_len": 4096},
        {"env": {"A": "1"}},
        {"extra_args": ("--enforce-eager",)},
        {"gpu_memory_utilization": 0.5},
        {"executable": "/opt/vllm"},
        {"working_directory": "/srv"},
        {"port": 8000},
        {"pin": "uuid"},
        {"share": True},
        {"gpus_per_worker": 2},
        {"tensor_parallel_size": 2},
    ],
)
def test_a_key_that_the_process_was_started_with_restarts_it(keys: dict[str, object]) -> None:
    found = changes([a_pool()], [a_pool(**keys)])

    assert {change.action for change in found.values()} == {"restart"}
    assert next(iter(keys)).replace("_", "-") in found["decode/0"].reason


def test_a_key_that_only_changes_the_gpus_moves_the_worker_and_says_where_to() -> None:
    found = changes([a_pool()], [a_pool(gpus=(0, 5))])

    assert {name: change.action for name, change in found.items()} == {"decode/0": "keep", "decode/1": "move"}
    assert found["decode/1"].reason == "moves to GPU 5"


def test_a_worker_that_loses_its_gpu_to_another_pool_moves_though_its_own_pool_is_unchanged() -> None:
    found = changes([a_pool()], [a_pool(), a_pool("first", workers=1, gpus=(0,))])

    assert {name: change.action for name, change in found.items()} == {
        "decode/0": "move",
        "decode/1": "keep",
        "first/0": "start",
    }
    assert found["decode/0"].keys == ()


def test_a_renamed_pool_stops_under_the_old_name_and_starts_under_the_new() -> None:
    found = actions([a_pool("old", workers=1)], [a_pool("new", workers=1)])

    assert found == {"new/0": "start", "old/0": "stop"}


def test_a_worker_that_was_never_placed_starts() -> None:
    fleet = Fleet(pools=(a_pool(),))

    found = compare(fleet, fleet, {"decode/0": ("GPU-0",)}, place(fleet.pools, HOST))

    assert [change.action for change in found] == ["keep", "start"]


def test_a_fleet_that_does_not_fit_changes_nothing() -> None:
    old, new = Fleet(pools=(a_pool(),)), Fleet(pools=(a_pool(workers=9),))

    assert compare(old, new, {}, place(new.pools, HOST)) == ()


def test_a_key_that_a_command_gets_nothing_of_restarts_nothing() -> None:
    before = Pool(name="proxy", engine="command", command=("sleep", "9"), gpus_per_worker=0, gpu_memory_utilization=0.9)
    after = structs.replace(before, gpu_memory_utilization=0.5, share=True, pin="uuid")

    found = changes([before], [after])

    assert {change.action for change in found.values()} == {"keep"}
    assert definition(before) == definition(after)


def test_a_run_of_a_version_that_digested_keys_without_effect_is_known_again() -> None:
    pool = Pool(name="proxy", engine="command", command=("sleep", "9"), gpus_per_worker=0, gpu_memory_utilization=0.5)
    first = first_definition(pool)
    worker = Worker(name="proxy/0", pool="proxy", index=0, definition=first, proved=first)

    known = as_digested_now(worker, pool)

    assert first != definition(pool)
    assert (known.definition, known.proved) == (definition(pool), definition(pool))


def test_a_change_tells_old_and_new_values_but_none_of_the_environment() -> None:
    before = a_pool()
    after = structs.replace(before, gpu_memory_utilization=0.5, env={"HF_TOKEN": "hf_secret"})

    told = changes([before], [after])["decode/0"].differences

    assert [str(one) for one in told] == ["gpu-memory-utilization 0.9 -> 0.5", "env"]
