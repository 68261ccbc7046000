"""Where each case that supervisors are held to is held, for whoever looks for one; every test named here exists.

The numbers are those of the list of 25 cases (and extras) gathered from the test suites of circus, supervisord, Pebble,
process-compose and Nomad. Two are answered otherwise here on purpose: an exit with code 0 is a failure too (2), since
vLLM exits with 0 when its engine was killed; and a spent budget always ends in ``failed`` (8), there is no mode that
waits for the next window.

1 killed from outside: e2e/test_main_road.py a_killed_worker_comes_back_with_the_cause_and_nothing_else_is_touched
2 exits by policy: policy/worker/test_step.py an_unasked_end_is_a_failure_whatever_the_code
3 never restarted: policy/worker/test_step.py mode_never_keeps_the_worker_known_and_its_exit
4 delays: policy/worker/test_restart.py delays_double_up_to_the_maximum
4 jitter: policy/worker/test_restart.py jitter_lengthens_a_delay_by_at_most_a_tenth
5 reset by a long life: policy/worker/test_restart.py after_a_long_ready_life_it_starts_at_once_and_counts_anew
6 stop in backoff: policy/worker/test_step.py a_commanded_stop_during_backoff_is_final
7 start in backoff: policy/worker/test_step.py a_start_by_the_operator_during_backoff_starts_now_and_zeroes_the_count
8 budget spent: policy/worker/test_restart.py one_failure_more_than_allowed_gives_up_and_says_the_numbers
9 beyond the window: policy/worker/test_restart.py failures_older_than_the_window_are_forgotten
10 restarts by command: policy/worker/test_step.py a_commanded_restart_never_counts_as_a_failure
11 missing program: e2e/test_main_road.py a_program_that_is_not_there_fails_once_with_its_name
11 answers meanwhile: e2e/cases/test_commands.py the_daemon_answers_at_once_while_workers_cannot_be_started
12 fails in its start: e2e/cases/test_commands.py a_start_that_fails_answers_with_the_reason_and_the_lines_that_prove_it
13 stop in the start: e2e/cases/test_stops.py a_stop_inside_the_start_window_ends_the_start_and_leaves_nothing
14 stubborn: e2e/cases/test_stops.py a_worker_that_ignores_sigterm_is_killed_when_its_grace_is_over_and_not_before
15 SIGSTOPped: e2e/cases/test_stops.py a_stopped_process_is_continued_so_that_it_can_end_by_sigterm
16 whole tree: host/test_trees.py no_child_outlives_the_main_process_however_it_ends
17 crash of the main process: host/test_trees.py the_rest_of_a_crashed_tree_is_gone_before_the_replacement_starts
18 held output: host/test_keeper.py a_child_that_holds_the_output_does_not_delay_the_end
19 double fork: host/test_trees.py as_pid_1_of_a_container_the_daemon_reaps_strangers_too
19 zombies by count: host/test_trees.py a_thousand_runs_leave_no_process_and_no_zombie
20 two restarts: e2e/cases/test_commands.py two_restarts_at_once_are_one_and_both_callers_are_told
20 stop in a restart: e2e/cases/test_commands.py a_stop_during_a_restart_is_the_last_word
21 dependents wait: e2e/cases/test_fleets.py dependents_wait_while_what_they_need_starts_anew_and_start_when_it_is_ready
21 dependency given up: e2e/cases/test_fleets.py dependents_of_a_worker_that_has_given_up_say_so
22 probes in backoff: policy/fleet/test_order.py a_probe_that_fails_again_and_again_during_backoff_starts_nothing
23 changed fleet: e2e/cases/test_fleets.py an_applied_fleet_touches_only_the_workers_that_it_changes
23 only the count: e2e/test_main_road.py scaling_keeps_the_survivors
24 daemon killed: e2e/test_main_road.py the_workers_survive_the_daemon_and_the_next_one_goes_on_with_them
25 stepped clock: e2e/cases/test_fleets.py a_stepped_clock_kills_nobody_and_loses_no_wait
extra, garbage: control/test_server.py what_is_no_request_is_answered_with_an_error_and_counted
extra, stop while starting: e2e/cases/test_stops.py a_sigterm_while_the_workers_start_leaves_nothing
extra, stop while taking over: e2e/cases/test_stops.py a_sigterm_at_any_instant_of_a_takeover_ends_the_daemon
extra, damaged state: e2e/test_adoption.py no_worker_notices_that_its_record_and_the_fleet_are
extra, mode of the socket: control/test_server.py the_socket_is_for_its_owner_and_group_only
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
ENTRY = re.compile(r"^(\d+|extra,) .+: (\S+\.py) (\w+)$", re.MULTILINE)
ENTRIES = ENTRY.findall(__doc__ or "")


def test_every_case_has_its_test() -> None:
    assert {int(number) for number, _, _ in ENTRIES if number.isdecimal()} == set(range(1, 26))


@pytest.mark.parametrize(("path", "name"), [(path, name) for _, path, name in ENTRIES])
def test_every_test_that_is_named_exists(path: str, name: str) -> None:
    assert f"\ndef test_{name}(" in (TESTS / path).read_text()
