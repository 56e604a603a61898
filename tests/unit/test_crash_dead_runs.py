"""Which unfinished runs are dead, and which processes are those of a run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prefect.client.schemas.objects import StateType

from flows.crash_dead_runs import Sighting, runs_with_process, verdict

RUNNING, PENDING, CANCELLING = StateType.RUNNING, StateType.PENDING, StateType.CANCELLING
HERE, ELSEWHERE = True, False
A_WEEK = 7 * 24 * 3600.0


@pytest.mark.parametrize(
    ("state", "silent_seconds", "taken_here", "becomes"),
    [
        (RUNNING, 119, HERE, None),
        (RUNNING, 121, HERE, "Crashed"),
        (PENDING, 119, HERE, None),
        (PENDING, 121, HERE, "Crashed"),
        (CANCELLING, 119, HERE, None),
        (CANCELLING, 121, HERE, "Cancelled"),
        (RUNNING, 599, ELSEWHERE, None),
        (RUNNING, 601, ELSEWHERE, "Crashed"),
        (PENDING, 599, ELSEWHERE, None),
        (PENDING, 601, ELSEWHERE, "Crashed"),
        (CANCELLING, 601, ELSEWHERE, "Cancelled"),
    ],
)
def test_silence_that_no_process_explains(state, silent_seconds, taken_here, becomes):
    found = verdict(Sighting(state, silent_seconds, has_process=False, taken_here=taken_here, has_heartbeat=True))
    assert (found and found.name) == becomes


@pytest.mark.parametrize("state", [RUNNING, PENDING, CANCELLING])
@pytest.mark.parametrize("taken_here", [HERE, ELSEWHERE])
@pytest.mark.parametrize("has_heartbeat", [True, False])
def test_a_run_with_a_process_lives_however_silent(state, taken_here, has_heartbeat):
    assert verdict(Sighting(state, A_WEEK, True, taken_here, has_heartbeat)) is None


@pytest.mark.parametrize(
    ("state", "taken_here", "becomes"),
    [
        (RUNNING, ELSEWHERE, None),  # heartbeats may be off there, or not get through
        (CANCELLING, ELSEWHERE, None),
        (PENDING, ELSEWHERE, "Crashed"),  # sends none yet
        (RUNNING, HERE, "Crashed"),
    ],
)
def test_a_run_that_never_sent_a_heartbeat(state, taken_here, becomes):
    found = verdict(Sighting(state, A_WEEK, has_process=False, taken_here=taken_here, has_heartbeat=False))
    assert (found and found.name) == becomes


def test_the_message_says_why_and_what_to_do():
    crashed = verdict(Sighting(RUNNING, A_WEEK, has_process=False, taken_here=True, has_heartbeat=True))
    assert crashed is not None
    assert crashed.message == (
        "its process is gone, and with it the worker or the machine that would have said so: start it again, it resumes"
    )


def test_processes_of_a_run_and_of_what_it_started():
    with _process("run-1", "prefect.engine"), _process("run-2", "raylet"):
        found = runs_with_process()
    assert "run-1" in found
    assert "run-2" not in found
    assert "run-1" not in runs_with_process()


@contextmanager
def _process(run: str, word: str) -> Iterator[None]:
    command = [sys.executable, "-c", "print(flush=True); input()", word]
    environment = os.environ | {"PREFECT__FLOW_RUN_ID": run}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it runs
        yield
        process.kill()
