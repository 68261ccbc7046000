"""Host files in TOML: defaults, ranges, and what is said of a wrong one."""

from __future__ import annotations

import pytest

from gpuward.config.errors import ConfigError
from gpuward.config.host import HostSettings
from gpuward.config.host_file import decode_host_toml


def decode(text: str) -> HostSettings:
    return decode_host_toml(text, file="gpuward.toml")


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        decode(text)
    return caught.value


def test_an_empty_file_is_all_defaults() -> None:
    assert decode("") == HostSettings()


def test_what_is_given_is_taken_and_the_rest_is_default() -> None:
    settings = decode('[inventory]\nexclude = [7, "GPU-x"]\n[limits]\nclaims-per-gpu = 0.95')

    assert settings.inventory.exclude == (7, "GPU-x")
    assert settings.limits.claims_per_gpu == 0.95
    assert settings.ports == HostSettings().ports


def test_an_empty_exclusion_excludes_nothing() -> None:
    assert decode("[inventory]\nexclude = []").inventory.exclude == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[ports]\nfirst = 0", "first = 0: must be from 1 to 65535"),
        ("[ports]\nlast = 65536", "last = 65536: must be from 1 to 65535"),
        ("[ports]\nper-worker = 8", "per-worker = 8: must be from 16"),
        ("[ports]\nfirst = 30000\nlast = 20000", "first = 30000: must not be above last = 20000"),
        ("[ports]\nfirst = 30000\nlast = 30009", "30000 to 30009 are 10 ports"),
        ("[inventory]\nsample-interval-s = 0.1", "must be from 0.2 to 60"),
        ("[inventory]\nsample-interval-s = 61", "must be from 0.2 to 60"),
        ("[inventory]\nexclude = [-1]", "indices start at 0"),
        ("[inventory]\nexclude = 0", "must be a list"),
        ('[inventory]\nprovider = "nvlm"', 'did you mean "nvml"?'),
        ("[limits]\nclaims-per-gpu = 0", "must be greater than 0 and at most 1"),
        ("[limits]\nclaims-per-gpu = 1.01", "must be greater than 0 and at most 1"),
        ("[limits]\nlog-keep-runs = true", "must be a whole number, not true or false"),
        ('[directories]\nstate = "var/lib"', "must be an absolute path"),
        ('[control]\nsocket = "gpuward.sock"', "must be an absolute path, such as /run/gpuward/control.sock"),
        ('[xid]\napp = ["13"]', 'must be a list of whole numbers; "13" is a string'),
        ("control = 5", "must be a table"),
    ],
)
def test_a_wrong_value_is_refused_with_section_key_value_and_what_it_must_be(text: str, says: str) -> None:
    error = refused(text)

    assert [problem.code for problem in error.problems] == ["bad-value"]
    assert str(error).startswith("gpuward.toml: [")
    assert says in str(error)


def test_unknown_keys_and_sections_are_refused_with_the_nearest() -> None:
    error = refused("[limit]\n[ports]\nfirts = 1")

    assert [problem.code for problem in error.problems] == ["unknown-key", "unknown-key"]
    assert "did you mean limits?" in str(error)
    assert "did you mean first?" in str(error)


@pytest.mark.parametrize(("size", "fits"), [(107, True), (108, False)])
def test_a_socket_path_has_at_most_107_bytes(size: int, fits: bool) -> None:
    path = "/" + "x" * (size - 6) + ".sock"
    text = f'[control]\nsocket = "{path}"'

    if fits:
        assert decode(text).control.socket == path
    else:
        assert "has 108 bytes, a socket path may have 107" in str(refused(text))


def test_the_event_socket_beside_it_must_fit_too() -> None:
    error = refused(f'[control]\nsocket = "/{"x" * 105}"')

    assert ".pub has 110 bytes" in str(error)


def test_a_path_is_measured_in_bytes_not_in_letters() -> None:
    assert "bytes" in str(refused(f'[control]\nsocket = "/{"ü" * 60}.sock"'))


def test_a_runtime_directory_must_leave_room_for_the_socket() -> None:
    assert "/control.sock has" in str(refused(f'[directories]\nruntime = "/{"x" * 100}"'))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("signatures = 3", "write [[signatures]] above each"),
        ('[[signatures]]\ncause = "hang"\ncontains = "x"', "says: is missing"),
        ('[[signatures]]\ncause = "oom"\ncontains = "x"\nsays = "y"', 'cause = "oom": must be one of'),
        ('[[signatures]]\ncause = "hang"\ncontains = "x"\nsays = "y"\npattern = "("', "must be a regular expression"),
        ('[[signatures]]\ncause = "hang"\ncontains = "x"\nsays = "y {mib}"', "{mib} is no named group of pattern"),
        ('[[signatures]]\ncause = "hang"\ncontains = "x"\nsays = "y"\nfoo = 1', "foo = 1: unknown key"),
    ],
)
def test_a_wrong_signature_is_refused_with_its_key(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as refused:
        decode(text)

    assert part in str(refused.value)
