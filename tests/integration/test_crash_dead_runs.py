"""Dead runs on a real Prefect server: what is within them ends too, and what lives is left alone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling, Completed, Crashed, Pending, Running
from prefect.testing.utilities import prefect_test_harness

from flows import crash_dead_runs as module
from flows.crash_dead_runs import crash_dead_runs
from flows.deployments import register
from flows.retrain import retrain

pytestmark = pytest.mark.e2e
WORKER = "worker-of-this-machine"


@task
def some_task() -> None: ...


@pytest.fixture(scope="module")
def client() -> Iterator[SyncPrefectClient]:
    with prefect_test_harness(server_startup_timeout=120), get_client(sync_client=True) as client:
        yield client


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence of no time is enough, and a worker of this machine had the runs."""
    for name in ("_SECONDS_HERE", "_SECONDS_ELSEWHERE", "_SECONDS_UNTIL_HEARD"):
        monkeypatch.setattr(module, name, 0)
    monkeypatch.setenv("PREFECT__WORKER_NAME", WORKER)


def _run(client: SyncPrefectClient, name: str, *states, worker: str | None = WORKER) -> FlowRun:
    """A run of a deployment that went through `states`."""
    deployment = client.read_deployment_by_name(name)
    run = client.create_flow_run_from_deployment(deployment.id)
    if worker is not None:
        client.update_flow_run_labels(run.id, {"prefect.worker.name": worker})
    for state in states:
        client.set_flow_run_state(run.id, state)
    return run


def _state(client: SyncPrefectClient, run: FlowRun) -> str:
    return client.read_flow_run(run.id).state_name


def test_dead_runs_get_the_state_that_they_should_have(client, tmp_path: Path):
    register(pool="machines", directory=tmp_path)
    running = _run(client, "retrain/retrain", Pending(), Running())
    cancelling = _run(client, "pack-corpus/pack-corpus", Pending(), Running(), Cancelling())
    pending = _run(client, "distill/distill", Pending())
    scheduled = _run(client, "train-student/train-student")
    ended = _run(client, "evaluate-student/evaluate-student", Pending(), Running(), Completed())
    of_another_machine = _run(client, "cache-logits/cache-logits", Pending(), Running(), worker="another")

    changed = crash_dead_runs()

    assert changed == {running.name: "Crashed", cancelling.name: "Cancelled", pending.name: "Crashed"}
    assert "start it again, it resumes" in client.read_flow_run(running.id).state.message
    assert _state(client, scheduled) == "Scheduled"
    assert _state(client, ended) == "Completed"
    assert _state(client, of_another_machine) == "Running"  # it never sent a heartbeat: nothing is known of it
    for name in ("retrain/retrain", "pack-corpus/pack-corpus", "distill/distill"):
        assert client.read_deployment_by_name(name).global_concurrency_limit.active_slots == 0
    assert crash_dead_runs() == {}
    client.set_flow_run_state(of_another_machine.id, Crashed())


def test_what_is_within_a_dead_run_does_not_stay_running(client, tmp_path: Path):
    """Also within one that its worker reported as Crashed."""
    register(pool="machines", directory=tmp_path)
    for reported in (False, True):
        run = _run(client, "retrain/retrain", Pending(), Running())
        outer = client.create_task_run(some_task, run.id, dynamic_key="0", state=Running())
        subflow = client.create_flow_run(retrain, parent_task_run_id=outer.id, state=Running())
        inner = client.create_task_run(some_task, subflow.id, dynamic_key="0", state=Running())
        if reported:
            client.set_flow_run_state(run.id, Crashed())
        crash_dead_runs()
        assert _state(client, run) == "Crashed"
        assert _state(client, subflow) == "Crashed"
        assert client.read_task_run(outer.id).state_name == "Crashed"
        assert client.read_task_run(inner.id).state_name == "Crashed"


def test_what_lives_or_is_not_ours_is_left_alone(client, tmp_path: Path):
    register(pool="machines", directory=tmp_path)
    living = _run(client, "retrain/retrain", Pending(), Running())

    @flow
    def foreign() -> None: ...

    deployment = client.create_deployment(client.create_flow(foreign), "foreign", work_pool_name="machines")
    other = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(other.id, Running())
    command = [sys.executable, "-c", "print(flush=True); input()", "prefect.engine"]
    environment = os.environ | {"PREFECT__FLOW_RUN_ID": str(living.id)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert crash_dead_runs() == {}
        process.kill()
    assert _state(client, living) == "Running"
    assert crash_dead_runs() == {living.name: "Crashed"}
    assert _state(client, other) == "Running"
