"""Fleet files in TOML: what they come to, and how each wrong one is refused."""

from __future__ import annotations

import time

import pytest

from gpuward.config.errors import ConfigError
from gpuward.config.fleet import Fleet, Pool, Remark, RestartPolicy
from gpuward.config.fleet_file import decode_fleet_toml

THERE = {"/srv/fleet/models/llama", "/opt/vllm/bin/vllm", "/srv/fleet/venv/bin/python"}


def decode(text: str) -> Fleet:
    return decode_fleet_toml(text, file="fleet.toml", directory="/srv/fleet", path_exists=THERE.__contains__)


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        decode(text)
    return caught.value


def a_pool(lines: str, name: str = "decode") -> str:
    return f'[pool.{name}]\nmodel = "org/model"\ngpu-memory-utilization = 0.9\n{lines}\n'


def only(error: ConfigError) -> Remark:
    assert len(error.problems) == 1, str(error)
    return error.problems[0]


def test_a_pool_of_one_line_has_the_documented_defaults() -> None:
    fleet = decode('[pool.decode]\nmodel = "org/model"')

    assert fleet.pools == (Pool(name="decode", model="org/model"),)
    assert fleet.pool("decode").device_count == 1


def test_the_utilization_that_is_not_stated_is_stated_in_a_warning() -> None:
    fleet = decode('[pool.decode]\nmodel = "org/model"')

    assert [(warning.code, warning.pool) for warning in fleet.warnings] == [("default-utilization", "decode")]
    assert "claims 0.9 of" in fleet.warnings[0].message


def test_a_utilization_from_the_defaults_counts_as_stated() -> None:
    fleet = decode('[defaults]\ngpu-memory-utilization = 0.5\n[pool.decode]\nmodel = "org/model"')

    assert fleet.pool("decode").gpu_memory_utilization == 0.5
    assert fleet.warnings == ()


def test_defaults_are_under_the_keys_of_a_pool_and_tables_are_merged_key_by_key() -> None:
    fleet = decode(
        """
        [defaults]
        workers = 2
        max-model-len = 4096
        [defaults.env]
        A = "1"
        B = "1"
        [defaults.restart]
        max-failures = 9
        [pool.decode]
        model = "org/model"
        workers = 3
        [pool.decode.env]
        B = "2"
        [pool.decode.restart]
        mode = "never"
        """
    )

    pool = fleet.pool("decode")
    assert (pool.workers, pool.max_model_len, pool.env) == (3, 4096, {"A": "1", "B": "2"})
    assert pool.restart == RestartPolicy(mode="never", max_failures=9)


def test_pools_stand_in_file_order() -> None:
    fleet = decode(a_pool("", "z") + a_pool("", "a"))

    assert [pool.name for pool in fleet.pools] == ["z", "a"]


def test_a_simulated_pool_needs_no_model() -> None:
    fleet = decode('[pool.decode]\nengine = "simulated"')

    assert fleet.pool("decode").model == "simulated-model"


def test_a_command_may_do_without_gpus() -> None:
    fleet = decode('[pool.p]\nengine = "command"\ncommand = ["sleep", "{index}", "{{x}}"]\ngpus-per-worker = 0')

    assert fleet.pool("p").device_count == 0
    assert fleet.warnings == ()


@pytest.mark.parametrize("text", ["", "# nothing\n", "\n\n"])
def test_an_empty_file_is_refused_with_the_way_to_a_pool(text: str) -> None:
    error = refused(text)

    assert only(error).code == "bad-value"
    assert "fleet.toml: no pool in this file: write [pool.NAME]" in str(error)


def test_a_tab_where_none_may_be_is_refused_with_its_line() -> None:
    error = refused('[pool.decode]\nmodel = "m"\nwork\ters = 1')

    assert only(error).code == "bad-syntax"
    assert "at line 3" in str(error)
    assert "work\\ters" in str(error)


@pytest.mark.parametrize("text", ["[" * 5000, "a = " + "[" * 5000, "a = " + "9" * 5000, "a = 2001-99-99", '"', "\0"])
def test_text_that_is_no_toml_is_refused(text: str) -> None:
    assert only(refused(text)).code == "bad-syntax"


def test_a_pool_given_twice_is_a_duplicate_name() -> None:
    error = refused(a_pool("") + a_pool(""))

    assert only(error).code == "duplicate-name"
    assert "'decode'" in str(error)


def test_a_key_given_twice_is_refused_with_its_line() -> None:
    error = refused(a_pool("workers = 1\nworkers = 2"))

    assert "at line 5" in str(error)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('gpus-per-worker = "2"', "must be a whole number, not text; write gpus-per-worker = 2 without quotes"),
        ("gpus-per-worker = 1.5", "must be a whole number, not a fraction"),
        ("gpus-per-worker = 2.0", "must be a whole number, not a fraction"),
        ("gpus-per-worker = true", "must be a whole number, not true or false"),
        ("gpus-per-worker = -1", "must be from 0 to 1024"),
        ("gpus-per-worker = 0", 'must be at least 1: only engine "command" runs without a GPU, this is "vllm"'),
        ("gpus-per-worker = 2001-01-01", "must be a whole number, not a date"),
        ("workers = -1", "must be from 0 to 10000"),
        ("workers = 99999999999999999999", "must be from 0 to 10000"),
        ("tensor-parallel-size = 0", "must be from 1 to 1024"),
        ("max-model-len = 0", "must be at least 1"),
        ("first-gpu = -1", "must be at least 0"),
        ("gpus = []", "names no GPU"),
        ("gpus = [-1]", "indices start at 0"),
        ('gpus = ["0"]', "an index is written without quotes"),
        ("gpus = [true]", "must be a list of whole numbers or strings; true is true or false"),
        ("gpus = 0", "must be a list"),
        ("port = 0", "must be from 1 to 65535"),
        ("port = 65536", "must be from 1 to 65535"),
        ("start-timeout-s = 0", "must be greater than 0"),
        ("stop-timeout-s = inf", "must be a finite number"),
        ("stop-timeout-s = nan", "must be a finite number"),
        ('share = "yes"', "must be true or false, not text"),
        ('engine = "vlm"', 'must be one of "vllm", "command", "simulated"; did you mean "vllm"?'),
        ('extra-args = "--x"', 'must be a list of strings, not one string; write extra-args = ["--x"]'),
        ('extra-args = ["--port", "80"]', "--port has a key of its own; set port"),
        ('extra-args = ["--max_model_len=9"]', "is --max-model-len, which has a key of its own; set max-model-len"),
        ('extra-args = ["--gpu_memory_utilization=0.3"]', "key of its own; set gpu-memory-utilization"),
        ('extra-args = ["-tp2"]', "-tp2 is --tensor-parallel-size, which has a key of its own"),
        ('extra-args = ["--tensor-parallel", "2"]', "set tensor-parallel-size"),
        ('extra-args = ["--max-model", "256"]', "set max-model-len"),
        ('extra-args = ["--model", "other"]', "set model"),
        ('extra-args = ["--config", "x.yaml"]', "gpuward does not see what that file sets"),
        ('extra-args = ["--headless"]', "nothing proves that it is ready"),
        ('extra-args = ["--uds", "/tmp/s"]', "gpuward asks each worker on a TCP port"),
        ('extra-args = ["--ssl-cert-reqs=2"]', "no certificate to show"),
        ('executable = ""', "must not be empty"),
        ('command = ["sleep"]', 'only engine "command" has it, this is "vllm"'),
        ("restart = 5", "must be a table"),
        ('restart = "always"', 'must be a table, not text; write restart.mode = "always"'),
        ('extra-args = "--seed 5 --dtype \\"auto\\""', 'write extra-args = ["--seed", "5", "--dtype", "auto"]'),
        ('extra-args = "it\'s"', "write each word in quotes of its own"),
        ('gpus = "6,7"', "must be a list of whole numbers or strings, not one string; write gpus = [6, 7]"),
        ("extra-args = [5]", "must be a list of strings; 5 is a whole number"),
        ('start-timeout-s = "30m"', "write start-timeout-s = 1800 (seconds)"),
        ('start-timeout-s = "1.5 h"', "write start-timeout-s = 5400 (seconds)"),
        ('start-timeout-s = "soon"', "must be a number, not text"),
        ('max-model-len = "16k"', "write max-model-len = 16384 (or 16000)"),
        ("memory-max = 4096", "must be at least 64MiB (67108864)"),
        ('engine = "sglang"', 'for any other program write engine = "command" and command = ["PROGRAM", ...]'),
    ],
)
def test_a_wrong_value_is_refused_with_file_pool_key_value_and_what_it_must_be(line: str, says: str) -> None:
    error = refused(a_pool(line))

    key, _, _ = line.partition(" = ")
    assert only(error).code == "bad-value"
    assert only(error).pool == "decode"
    assert str(error).startswith(f"fleet.toml: pool 'decode': {key} = ")
    assert says in str(error)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("0", "must be greater than 0 and at most 1"),
        ("1.2", "must be greater than 0 and at most 1"),
        ("-0.5", "must be greater than 0 and at most 1"),
        ("90", "must be greater than 0 and at most 1; write 0.9"),
        ('"90%"', "must be a number, not text; write gpu-memory-utilization = 0.9"),
        ('"0.9"', "must be a number, not text; write gpu-memory-utilization = 0.9 without quotes"),
        ("true", "must be a number, not true or false"),
        ("nan", "must be a finite number"),
    ],
)
def test_a_wrong_utilization_is_refused(value: str, says: str) -> None:
    error = refused(f'[pool.decode]\nmodel = "m"\ngpu-memory-utilization = {value}')

    assert says in only(error).message


def test_the_largest_utilization_is_one() -> None:
    fleet = decode('[pool.decode]\nmodel = "m"\ngpu-memory-utilization = 1')

    assert fleet.pool("decode").gpu_memory_utilization == 1.0


def test_an_unknown_key_is_refused_with_the_nearest() -> None:
    error = refused(a_pool("worker = 3"))

    assert only(error).code == "unknown-key"
    assert str(error).endswith("worker = 3: unknown key; did you mean workers?")


def test_an_unknown_key_that_resembles_none_is_refused_with_all_known_ones() -> None:
    assert "zzz = 3: unknown key; known keys: allow-idle-gpus, command, " in str(refused(a_pool("zzz = 3")))


def test_a_key_with_an_underscore_is_told_its_spelling() -> None:
    error = refused(a_pool("max_model_len = 3"))

    assert "did you mean max-model-len?" in str(error)


def test_unknown_tables_and_keys_inside_tables_are_refused_too() -> None:
    error = refused("[pools.decode]\n[defaults]\nworker = 1\n" + a_pool("") + "[pool.decode.restart]\nmod = 1")

    assert [problem.code for problem in error.problems] == ["unknown-key"] * 3
    assert "did you mean pool?" in error.problems[0].message
    assert "restart: mod = 1: unknown key; did you mean mode?" in error.problems[2].message


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("delay-first-s = 0", "must be from 0.01"),
        ("delay-first-s = 0.001", "must be from 0.01"),
        ("delay-first-s = 10\ndelay-max-s = 5", "must be at least delay-first-s = 10"),
        ("max-failures = -1", "must be from 0"),
        ("window-s = 0", "must be greater than 0"),
        ("reset-after-s = 0", "must be greater than 0"),
        ('mode = "sometimes"', 'must be one of "always", "never"'),
    ],
)
def test_a_restart_policy_without_a_pause_or_an_end_is_refused(line: str, says: str) -> None:
    error = refused(a_pool(f"[pool.decode.restart]\n{line}"))

    assert only(error).code == "bad-value"
    assert says in str(error)


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "GPUWARD_WORKER"])
def test_variables_that_gpuward_sets_are_refused(name: str) -> None:
    error = refused(a_pool(f'[pool.decode.env]\n{name} = "0"'))

    assert f'env.{name} = "0": gpuward sets this variable' in only(error).message


def test_a_variable_that_is_no_text_is_refused_with_the_text_to_write() -> None:
    error = refused(a_pool("[pool.decode.env]\nA = 1\nB = true"))

    assert ['write A = "1"' in problem.message for problem in error.problems] == [True, False]
    assert 'write B = "true"' in error.problems[1].message


@pytest.mark.parametrize("name", ["", "a/b", ".a", "a b", "x" * 64, "ü"])
def test_a_name_that_cannot_stand_in_paths_and_listings_is_refused(name: str) -> None:
    error = refused(f'[pool."{name}"]\nmodel = "m"')

    assert "the name must be 1 to 63" in only(error).message


def test_dependencies_must_be_there_and_must_not_go_in_a_circle() -> None:
    unknown = refused(a_pool('depends-on = ["b"]', "a"))
    circle = refused(
        a_pool('depends-on = ["b"]', "a") + a_pool('depends-on = ["c"]', "b") + a_pool('depends-on = ["a"]', "c")
    )
    itself = refused(a_pool('depends-on = ["a"]', "a"))

    assert "there is no pool 'b'" in only(unknown).message
    assert "goes in a circle: a -> b -> c -> a" in only(circle).message
    assert "goes in a circle: a -> a" in only(itself).message


def test_first_gpu_and_gpus_exclude_each_other() -> None:
    assert "excludes `gpus`" in only(refused(a_pool("first-gpu = 0\ngpus = [0]"))).message


def test_an_engine_has_what_it_needs() -> None:
    no_model = refused("[pool.a]\n")
    no_command = refused('[pool.a]\nengine = "command"')

    assert 'engine "vllm" needs it' in only(no_model).message
    assert 'engine "command" needs it' in only(no_command).message


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('command = ["x", "{prot}"]', "{prot} is no placeholder; there are {port}, {gpus}, {worker}, {index}"),
        ('command = ["x", "}"]', "} is no placeholder"),
        ('command = ["x"]\nready-url = "ftp://h/"', "must be an http address"),
        ('command = ["x"]\nready-url = "http://h:{x}/"', "{x} is no placeholder"),
        ('command = ["x"]\nready-log = "("', "must be a regular expression"),
        ('command = ["x"]\nready-log = "a"\nready-after-s = 1', "ready-log and ready-after-s: one proof"),
        ('command = ["x"]\ngpus-per-worker = 0\ngpus = [0]', "`gpus` names GPUs for workers that get none"),
        ('command = [""]', "needs it"),
    ],
)
def test_a_command_that_could_not_work_is_refused(lines: str, says: str) -> None:
    error = refused(f'[pool.p]\nengine = "command"\n{lines}')

    assert says in only(error).message


def test_readiness_by_log_is_for_commands_only() -> None:
    assert 'only engine "command" has it' in only(refused(a_pool('ready-log = "x"'))).message


def test_the_last_worker_must_have_a_port_too() -> None:
    assert "worker 2 would need port 65536" in only(refused(a_pool("port = 65534\nworkers = 3"))).message


def test_all_problems_of_all_pools_are_told_at_once() -> None:
    error = refused(a_pool('workers = "2"\nport = 0\nnope = 1', "a") + '[pool.b]\nengine = "command"\n')

    assert [(problem.code, problem.pool) for problem in error.problems] == [
        ("bad-value", "a"),
        ("bad-value", "a"),
        ("unknown-key", "a"),
        ("bad-value", "b"),
    ]
    assert len(str(error).splitlines()) == 4


def test_control_characters_of_a_file_do_not_reach_the_terminal() -> None:
    error = refused('[pool."\\u001b[2J"]\n"\\u0085" = "\\u001b]0;x\\u0007"')

    assert str(error).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (a_pool("workers = 0x" + "f" * 5000), "pool.decode.workers: a number of 20000 bits"),
        ("a" + ".a" * 5000 + " = 1", "a dotted key of 5001 parts"),
        ("[" + '"a".' * 5000 + "a]", "a dotted key of 5001 parts"),
        (a_pool(f'memory-max = "{"9" * 400}.9GiB"'), "memory-max = "),
        ('[pool.a]\nengine = "command"\ncommand = ["/x"]\nready-log = "' + "(" * 5000 + '"', "at most 1000 characters"),
        (a_pool("gpus = [" + "1," * 30_000 + "]"), "about 30003 values; at most 20000"),
        ("".join(f"[pool.p{number}]\n" for number in range(3000)), "3000 tables; at most 2000"),
        (a_pool("extra-args = [" + '"--a",' * 1001 + "]"), "has 1001 words; at most 1000 are taken"),
        ("x" * 600_000, "600000 characters; at most 524288"),
        (a_pool('working-directory = "/tmp\\rmarker VICTIM=1"'), "working-directory: holds the character U+000D"),
        (a_pool('working-directory = "/tmp\\nmarker VICTIM=1"'), "must be one line of printable characters"),
        (a_pool('env = {A = "\\u0085"}'), "env.A: holds the character U+0085"),
        (a_pool("max-model-len = 99999999999999999999"), "must be at least 1"),
        (a_pool("gpus = [99999999999999999999]"), "is not a GPU index"),
    ],
)
def test_what_no_file_comes_to_is_refused_at_once(text: str, said: str) -> None:
    began_s = time.process_time()

    message = str(refused(text))

    assert said in message
    assert len(message) < 500
    assert time.process_time() - began_s < 0.5


def test_problems_are_named_up_to_a_hundred() -> None:
    error = refused(a_pool("".join(f"key-{number} = 1\n" for number in range(5000))))

    assert len(error.problems) == 101
    assert error.problems[-1].message == "and 4900 more problems like these"


def test_a_value_of_several_lines_may_stand_in_the_environment() -> None:
    assert decode(a_pool('env = {A = "one\\n\\ttwo"}')).pools[0].env == {"A": "one\n\ttwo"}


def test_a_key_that_is_wrong_is_not_reported_missing_as_well() -> None:
    assert "must be text" in only(refused("[pool.a]\nmodel = 5")).message


def test_what_belongs_to_one_pool_cannot_stand_in_the_defaults() -> None:
    error = refused("[defaults]\ngpus = [0]\n" + a_pool(""))

    assert only(error).code == "unknown-key"
    assert str(error) == (
        "fleet.toml: [defaults]: gpus = [0]: "
        "gpus belongs to one pool and cannot be a default; write it under [pool.NAME]"
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("max-num-seqs = 64", '["--max-num-seqs", "64"]'),
        ("enforce_eager = true", '["--enforce-eager"]'),
        ("enable-prefix-caching = false", '["--no-enable-prefix-caching"]'),
        ('served-model-name = ["a", "b"]', '["--served-model-name", "a", "b"]'),
    ],
)
def test_an_option_of_vllm_is_told_its_place(line: str, words: str) -> None:
    error = refused(a_pool(line))

    assert only(error).code == "unknown-key"
    assert str(error).endswith(f"not a key of gpuward; options of vLLM go into extra-args = {words}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[pool.llama-3.1-8b]\nmodel = "m"', '[pool."llama-3.1-8b"]'),
        ('[pool.llama-3.1-8b]\nmodel = "m"\n[pool.llama-3.2-1b]\nmodel = "m"', '[pool."llama-3.1-8b"]'),
        ('[pool.llama-3]\nmodel = "m"\n[pool.llama-3.1-8b]\nmodel = "m"', '[pool."llama-3.1-8b"]'),
    ],
)
def test_a_name_with_a_dot_is_told_to_need_quotes_and_nothing_else(text: str, says: str) -> None:
    error = refused(text)

    assert only(error).code == "unknown-key"
    assert str(error).endswith(f"a name with a dot needs quotes: {says}")


def test_a_table_beside_the_pools_is_asked_about() -> None:
    assert str(refused('[router]\nmodel = "m"')).endswith("unknown table; did you mean [pool.router]?")
    assert str(refused('[default]\nmodel = "m"')).endswith("unknown key; did you mean defaults?")


def test_pools_that_leave_the_default_utilization_are_told_in_one_warning() -> None:
    fleet = decode("".join(f'[pool.p{number}]\nmodel = "org/m"\n' for number in range(7)))

    assert [(warning.code, warning.pool) for warning in fleet.warnings] == [("default-utilization", None)]
    assert "for pools p0, p1, p2, p3, p4 and 2 more: each worker claims 0.9" in fleet.warnings[0].message


def test_a_model_that_exists_beside_the_file_is_made_absolute() -> None:
    fleet = decode('[defaults]\ngpu-memory-utilization = 0.5\n[pool.a]\nmodel = "models/llama/"')

    assert (fleet.pool("a").model, fleet.warnings) == ("/srv/fleet/models/llama", ())


def test_a_hub_name_is_passed_on_without_a_warning() -> None:
    fleet = decode(a_pool(""))

    assert (fleet.pool("decode").model, fleet.warnings) == ("org/model", ())


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("/models/x", "/models/x"),
        ("./x", "/srv/fleet/x"),
        ("../x/", "/srv/x"),
        ("models/llama3.1-8b-ins/", "models/llama3.1-8b-ins/"),
        ("a/b/c", "a/b/c"),
    ],
)
def test_a_model_path_that_does_not_exist_is_a_warning_not_a_refusal(model: str, given: str) -> None:
    fleet = decode(f'[defaults]\ngpu-memory-utilization = 0.5\n[pool.a]\nmodel = "{model}"')

    assert fleet.pool("a").model == given
    assert [warning.code for warning in fleet.warnings] == ["model-not-found"]


def test_an_executable_is_looked_up_beside_the_file_and_missing_ones_are_warnings() -> None:
    there = decode(a_pool('executable = "venv/bin/python"'))
    missing = decode(a_pool('executable = "/nowhere/vllm"'))
    bare = decode(a_pool('executable = "vllm"'))

    assert (there.pool("decode").executable, there.warnings) == ("/srv/fleet/venv/bin/python", ())
    assert [warning.code for warning in missing.warnings] == ["executable-not-found"]
    assert (bare.pool("decode").executable, bare.warnings) == ("vllm", ())


def test_keys_that_a_command_does_not_use_are_kept_visible() -> None:
    fleet = decode('[pool.p]\nengine = "command"\ncommand = ["x"]\ngpus-per-worker = 0\nmodel = "m"')

    assert [warning.code for warning in fleet.warnings] == ["key-without-effect"]


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        ("42949672960", 42949672960),
        ('"40GiB"', 40 * 1024**3),
        ('"40 Gi"', 40 * 1024**3),
        ('"40GB"', 40 * 1000**3),
        ('"1.5TiB"', 1536 * 1024**3),
        ('"67108864"', 64 * 1024**2),
    ],
)
def test_memory_max_is_bytes_however_it_is_written(written: str, size_bytes: int) -> None:
    assert decode(a_pool(f"memory-max = {written}")).pool("decode").memory_max == size_bytes


@pytest.mark.parametrize("written", ['"40G"', '"40"', '"lots"', '""', "40", "true", "4.5e9", '"1MiB"', "-1"])
def test_a_memory_max_that_is_none_is_refused_with_the_value(written: str) -> None:
    problem = only(refused(a_pool(f"memory-max = {written}")))

    assert (problem.code, problem.pool) == ("bad-value", "decode")
    assert "memory-max = " in problem.message


def test_memory_max_may_be_a_default_of_all_pools() -> None:
    fleet = decode('[defaults]\nmemory-max = "40GiB"\n' + a_pool(""))

    assert fleet.pool("decode").memory_max == 40 * 1024**3
