"""What the counters of a worker tell, also where they are no counters."""

from __future__ import annotations

import pytest

from gpuward.running.liveness import counters_of


def test_counters_are_summed_over_engines() -> None:
    body = b"""# HELP vllm:generation_tokens_total x
vllm:generation_tokens_total{engine="0"} 12.0
vllm:generation_tokens_total{engine="1"} 1.5e+03
vllm:num_requests_running{engine="0"} 2.0
vllm:num_requests_waiting{engine="0"} 1.0
"""

    look = counters_of(body)

    assert (look.progress, look.requests) == (1512.0, 3)


@pytest.mark.parametrize("value", [b"1.2.3", b"1e999", b"e", b"9" * 5000, b"1e300", b"+"])
@pytest.mark.parametrize("name", [b"vllm:generation_tokens_total", b"vllm:num_requests_running"])
def test_what_counts_nothing_is_no_counter(name: bytes, value: bytes) -> None:
    look = counters_of(name + b"{} " + value + b"\n")

    assert look.progress is None
    assert look.said.startswith(("could not convert", "a counter of"))
