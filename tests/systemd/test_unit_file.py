"""What gpuward.service must say, and must never say, for workers to survive their daemon. Needs no systemd."""

from __future__ import annotations

import re

import pytest


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("KillMode", "process", id="restart, crash and watchdog leave the workers alive"),
        pytest.param("OOMPolicy", "continue", id="one worker killed for memory does not end the unit"),
        pytest.param("RuntimeDirectoryPreserve", "yes", id="keepers that outlive a stop can still write"),
        pytest.param("Type", "notify", id="active means that the daemon said READY"),
        pytest.param("NotifyAccess", "main", id="no worker can speak for the daemon"),
        pytest.param("RestartPreventExitStatus", "78", id="a bad configuration is not tried again and again"),
        pytest.param("Restart", "on-failure", id="a crashed daemon comes back"),
        pytest.param("User", "gpuward", id="not root"),
        pytest.param("CapabilityBoundingSet", "", id="no capabilities"),
        pytest.param("NoNewPrivileges", "yes", id="no way to get any"),
        pytest.param(
            "ReadWritePaths", "/run/gpuward -/run/gpuward-leases", id="socket and leases under ProtectSystem=strict"
        ),
        pytest.param("LimitCORE", "0", id="a crashing worker does not fill the disk"),
    ],
)
def test_the_unit_says(unit, key: str, value: str) -> None:
    assert unit.values("Service", key) == [value]


@pytest.mark.parametrize(
    ("key", "harmless"),
    [
        pytest.param("PrivateTmp", ["no"], id="a restart would empty the tmp of surviving workers"),
        pytest.param("RemoveIPC", ["no"], id="a restart would delete the shared memory of surviving workers"),
        pytest.param("MemoryDenyWriteExecute", ["no"], id="CUDA and triton write code and run it"),
        pytest.param("PrivateDevices", ["no"], id="the GPUs would be hidden"),
        pytest.param("DevicePolicy", ["auto"], id="device group names differ by driver release"),
        pytest.param("DeviceAllow", [], id="device group names differ by driver release"),
        pytest.param("PrivateUsers", ["no"], id="peers of the socket would all be nobody"),
        pytest.param("RuntimeDirectory", [], id="each reload would take the socket away from gpuctl"),
        pytest.param("Delegate", ["no"], id="surviving workers would make the next start fail with 219/CGROUP"),
        pytest.param("IPAddressDeny", [], id="clients reach the workers over the network"),
    ],
)
def test_the_unit_never_asks_for(unit, key: str, harmless: list[str]) -> None:
    assert all(value in harmless for value in unit.values("Service", key))


def test_the_daemon_may_reach_its_caches_in_the_sandbox(unit) -> None:
    environment = " ".join(unit.values("Service", "Environment"))

    cached = re.findall(r"(\w+)=%C/gpuward", environment)

    assert unit.values("Service", "CacheDirectory") == ["gpuward gpuward/tmp"]
    assert {"XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TMPDIR"} <= set(cached)


def test_the_stop_timeout_is_longer_than_the_grace_of_two_layers_of_workers(unit) -> None:
    from gpuward.config.drain import grace_s
    from gpuward.config.fleet import Pool

    (timeout,) = unit.values("Service", "TimeoutStopSec")

    assert int(timeout.removesuffix("min")) * 60 > 2 * grace_s(Pool(name="any"))


def test_the_daemon_is_started_with_both_files_of_etc_gpuward(unit) -> None:
    (command,) = unit.values("Service", "ExecStart")

    assert command.split()[:2] == ["/usr/bin/gpuward", "run"]
    assert "--config /etc/gpuward/gpuward.toml --fleet /etc/gpuward/fleet.toml" in command


def test_the_directory_of_the_socket_belongs_to_operators_only(shipped) -> None:
    lines = [line.split() for line in (shipped / "gpuward.tmpfiles.conf").read_text().splitlines()]

    (run,) = [line for line in lines if line[1:2] == ["/run/gpuward"]]

    assert run == ["d", "/run/gpuward", "0750", "gpuward", "gpuctl", "-"]


def test_every_group_that_the_unit_needs_is_made_by_sysusers(unit, shipped) -> None:
    lines = [line.split() for line in (shipped / "gpuward.sysusers.conf").read_text().splitlines()]
    made = {line[1] for line in lines if line[:1] in (["g"], ["u"])}

    needed = {*unit.values("Service", "Group"), *unit.values("Service", "SupplementaryGroups")[0].split()}

    assert needed <= made
