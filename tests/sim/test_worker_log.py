"""What of the requests to a simulated worker stands in its log."""

from __future__ import annotations

from tests.sim.simulated_worker import Start


def test_endpoints_that_are_to_be_quiet_are_and_others_are_not(start: Start) -> None:
    worker = start("--disable-access-log-for-endpoints", "/health,/metrics").ready()

    for path in ("/health", "/metrics", "/version"):
        worker.ask("GET", path)
    worker.until('"GET /version HTTP/1.1" 200 OK')

    assert not [line for line in worker.log if "GET /health" in line or "GET /metrics" in line]
