"""Where a daemon puts its things."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuward.app import Options, Places, _places
from gpuward.config.host import Directories, HostSettings
from gpuward.host.leases import HOST_PLACES


@pytest.fixture
def as_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/here")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/here")
    monkeypatch.delenv("LOGS_DIRECTORY", raising=False)


@pytest.mark.usefixtures("as_a_service")
def test_a_simulated_host_has_directories_of_its_own_and_the_socket_where_gpuctl_looks() -> None:
    assert _places(Options(simulate="8xH100-80GB"), HostSettings()) == Places(
        runtime=Path("/run/here/simulated"),
        state=Path("/var/here/simulated"),
        logs=Path("/var/here/simulated/logs"),
        leases=Path("/run/here/simulated/leases"),
        shared_leases=(),
        socket="/run/here/control.sock",
    )


@pytest.mark.usefixtures("as_a_service")
def test_directories_that_are_given_are_taken_as_they_are() -> None:
    given = Options(simulate="8xH100-80GB", state_dir=Path("/s"), runtime_dir=Path("/r"))

    places = _places(given, HostSettings())

    assert (places.state, places.runtime, places.socket) == (Path("/s"), Path("/r"), "/r/control.sock")


@pytest.mark.usefixtures("as_a_service")
def test_leases_of_real_gpus_lie_where_every_daemon_of_the_host_looks() -> None:
    named = HostSettings(directories=Directories(leases="/leases"))

    assert _places(Options(), HostSettings()).shared_leases == HOST_PLACES
    assert _places(Options(), named).shared_leases == (Path("/leases"),)
