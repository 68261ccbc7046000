"""Which ports belong to which worker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuward.config.fleet import Pool
from gpuward.config.host import PortRange
from gpuward.policy.placement.ports import PortsExhausted, assign, explicit_ports, problems

TEN_BLOCKS = PortRange(first=20000, last=20099, per_worker=10)


def test_workers_get_blocks_in_order() -> None:
    assert assign(["a/0", "a/1"], TEN_BLOCKS, {}) == {"a/0": 20000, "a/1": 20010}


def test_a_worker_keeps_its_block_when_others_come_and_go() -> None:
    before = assign(["a/0", "a/1", "b/0"], TEN_BLOCKS, {})

    after = assign(["c/0", "a/1", "b/0"], TEN_BLOCKS, before)

    assert after == {"c/0": 20000, "a/1": 20010, "b/0": 20020}


def test_a_block_that_its_own_worker_listens_in_is_kept() -> None:
    assert assign(["a/0"], TEN_BLOCKS, {"a/0": 20030}, {20030, 20031}) == {"a/0": 20030}


def test_a_new_block_holds_no_busy_port() -> None:
    assert assign(["a/0"], TEN_BLOCKS, {}, {20009, 20010, 80}) == {"a/0": 20020}


@pytest.mark.parametrize("stale", [19990, 20005, 20100])
def test_a_block_that_the_range_no_longer_has_is_given_up(stale: int) -> None:
    assert assign(["a/0"], TEN_BLOCKS, {"a/0": stale}) == {"a/0": 20000}


def test_two_workers_never_keep_one_block() -> None:
    assert assign(["a/0", "a/1"], TEN_BLOCKS, {"a/0": 20010, "a/1": 20010}) == {"a/0": 20010, "a/1": 20000}


def test_more_workers_than_blocks_are_refused_with_the_sum() -> None:
    with pytest.raises(PortsExhausted, match=r"11 workers: 20000 to 20099 holds 10 blocks of 10, 1 of them busy"):
        assign([f"a/{index}" for index in range(11)], TEN_BLOCKS, {}, {20000})


def test_a_last_block_that_is_not_whole_is_not_used() -> None:
    with pytest.raises(PortsExhausted, match="holds 1 blocks of 10"):
        assign(["a/0", "a/1"], PortRange(first=20000, last=20018, per_worker=10), {})


@given(
    workers=st.lists(st.sampled_from([f"w/{index}" for index in range(12)]), unique=True, max_size=6),
    current=st.dictionaries(
        st.sampled_from([f"w/{index}" for index in range(12)]), st.integers(19995, 20105), max_size=12
    ),
    busy=st.sets(st.integers(20000, 20039), max_size=4),
)
def test_blocks_are_disjoint_whole_and_inside_the_range(
    workers: list[str], current: dict[str, int], busy: set[int]
) -> None:
    assigned = assign(workers, TEN_BLOCKS, current, busy)

    ports = [port for first in assigned.values() for port in range(first, first + 10)]
    assert list(assigned) == workers
    assert len(ports) == len(set(ports)) == 10 * len(workers)
    assert all(20000 <= port <= 20099 for port in ports)
    assert assign(workers, TEN_BLOCKS, assigned, busy) == assigned


def test_a_pool_port_counts_up_by_worker() -> None:
    pools = [Pool(name="a", port=8000, workers=2), Pool(name="b")]

    assert explicit_ports(pools) == {"a/0": 8000, "a/1": 8001}


def test_two_pools_that_meet_on_a_port_are_reported_once() -> None:
    pools = [Pool(name="a", port=8000, workers=4), Pool(name="b", port=8002, workers=4)]

    (problem,) = problems(pools, TEN_BLOCKS)

    assert (problem.code, problem.pool) == ("port-conflict", "b")
    assert "port 8002 would belong to a/2 and b/0" in problem.message


def test_ports_beyond_the_last_one_are_reported() -> None:
    (problem,) = problems([Pool(name="a", port=65534, workers=3)], TEN_BLOCKS)

    assert (problem.code, problem.pool) == ("bad-value", "a")
    assert "65534 to 65536" in problem.message


def test_a_fleet_with_too_few_blocks_is_reported() -> None:
    (problem,) = problems([Pool(name="a", workers=11)], TEN_BLOCKS)

    assert (problem.code, problem.pool) == ("too-few-ports", None)


def test_explicit_ports_inside_the_range_cost_their_block() -> None:
    pools = [Pool(name="a", workers=9), Pool(name="b", port=20005)]

    assert [problem.code for problem in problems(pools, TEN_BLOCKS)] == ["too-few-ports"]
    assert problems(pools[:1], TEN_BLOCKS) == ()
