"""A run during which a piece of the stack is killed: it finishes, by itself or when started again, with equal files.

Data is on the stack's object store, figures go to its MLflow. What each kill comes to is the table of infra/README.md.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import s3fs
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.events import Event, RelatedResource, Resource, get_events_client
from prefect.events.schemas.automations import AutomationCore
from prefect.states import Completed, Pending, Running
from stacks import Stack, answers, api_of, command_of, stack_file, stack_up, wait_until

from flows.crash_dead_runs import HEARTBEAT
from infra.stack.leftovers import left_of
from infra.stack.services import WORKER, credentials_of

pytestmark = [pytest.mark.kill, pytest.mark.timeout(1800)]

ITSELF, STARTED_AGAIN = "by itself", "started again"
RAY_WORKER, PROCESS, BOTH = "ray worker", "process of the run", "worker and process of the run"
ENDS = {
    "prefect": {ITSELF},
    WORKER: {ITSELF},
    "mlflow": {ITSELF, STARTED_AGAIN},  # as it logs just then, or not
    "object-store": {ITSELF},
    RAY_WORKER: {ITSELF},
    PROCESS: {STARTED_AGAIN},
    BOTH: {STARTED_AGAIN},
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    file = stack_file(tmp_path_factory.mktemp("up"))
    file.write_text('optional = ["object-store"]\n' + file.read_text())
    with stack_up(file) as stack:
        yield stack


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[SyncPrefectClient]:
    with api_of(stack) as client:
        yield client


@pytest.fixture(scope="module")
def store(stack: Stack) -> s3fs.S3FileSystem:
    keys = credentials_of(stack.settings)
    return s3fs.S3FileSystem(
        key=keys["AWS_ACCESS_KEY_ID"],
        secret=keys["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=keys["AWS_ENDPOINT_URL"],
        use_listings_cache=False,
    )


@pytest.fixture(scope="module")
def undisturbed(client: SyncPrefectClient, store: s3fs.S3FileSystem, stack: Stack, tiny_teacher_dir: Path):
    run = start(client, settings("undisturbed", tiny_teacher_dir, stack))
    wait_until(lambda: client.read_flow_run(run.id).state.is_final())
    assert client.read_flow_run(run.id).state.is_completed(), client.read_flow_run(run.id).state.message
    return files(store, "undisturbed")


@pytest.mark.parametrize("killed", ENDS)
def test_a_run_outlives_it_or_resumes(stack, client, store, undisturbed, tiny_teacher_dir, killed):
    bucket = f"kill-{killed.replace(' ', '-')}"
    config = settings(bucket, tiny_teacher_dir, stack, ray=killed == RAY_WORKER)
    run = start(client, config)
    wait_until(lambda: len(committed(store, bucket)) >= 4)
    before = committed(store, bucket)
    assert not client.read_flow_run(run.id).state.is_final()

    began = time.monotonic()
    kill(stack, run, killed)
    wait_until(lambda: all(stack.pids().values()) and answers_all(stack))
    state = ended(client, run)
    seconds, how = time.monotonic() - began, ITSELF
    shown = f"{state.name} after {seconds:.0f} s"
    if not state.is_completed():
        how = STARTED_AGAIN
        again = start(client, config)
        assert ended(client, again).is_completed(), client.read_flow_run(again.id).state.message
    print(f"{killed}: {shown}, finished {how} after {time.monotonic() - began:.0f} s")

    assert how in ENDS[killed], state.message
    if killed in (PROCESS, BOTH):
        assert state.name == "Crashed"
    if killed == BOTH:
        assert "start it again, it resumes" in state.message
        within = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]))
        )
        assert within
        assert all(one.state.is_final() for one in within)
        assert all(one.state.is_final() for one in client.read_task_runs(flow_run_filter=_only(run)))
    assert files(store, bucket) == undisturbed
    assert before.items() <= committed(store, bucket).items()  # nothing was written twice


def test_the_server_crashes_a_silent_run_by_itself(client):
    """The automation's quarter of an hour is half a minute here; a run that talks and one that ended are left alone."""
    [declared] = client.read_automations_by_name("rskd-crash-silent-runs")
    hasty = AutomationCore.model_validate(declared.model_dump(exclude={"id"}) | {"name": "hasty"})
    hasty.trigger.within = timedelta(seconds=30)
    hasty_id = client.create_automation(hasty)
    time.sleep(5)  # until the server has loaded it
    names = ("pack-corpus/pack-corpus", "promote/promote", "rollback/rollback")
    silent, talking, finished = (running(client, name) for name in names)
    asyncio.run(beat(silent, talking, finished))
    client.set_flow_run_state(finished.id, Completed())
    end = time.monotonic() + 75
    while time.monotonic() < end:
        asyncio.run(beat(talking))
        time.sleep(5)
    states = [client.read_flow_run(run.id).state for run in (silent, talking, finished)]
    client.delete_automation(hasty_id)
    for run in (silent, talking, finished):
        client.delete_flow_run(run.id)
    assert [state.name for state in states] == ["Crashed", "Running", "Completed"]
    assert "start it again" in states[0].message


def running(client: SyncPrefectClient, deployment: str) -> FlowRun:
    """A run that a worker elsewhere has begun."""
    run = client.create_flow_run_from_deployment(client.read_deployment_by_name(deployment).id, state=Pending())
    client.set_flow_run_state(run.id, Running())
    return run


async def beat(*runs: FlowRun) -> None:
    """Heartbeats of runs, as Prefect sends them."""
    async with get_events_client() as events:
        for run in runs:
            resource = Resource({"prefect.resource.id": f"prefect.flow-run.{run.id}"})
            tag = RelatedResource({"prefect.resource.id": "prefect.tag.rskd", "prefect.resource.role": "tag"})
            await events.emit(Event(event=HEARTBEAT, resource=resource, related=[tag]))


def settings(bucket: str, teacher: Path, stack: Stack, *, ray: bool = False) -> dict[str, Any]:
    return {
        "name": "tiny",
        "storage": {"root": f"s3://{bucket}"},
        "corpus": {
            "source": {"kind": "python_docs"},
            "seq_len": 64,
            "max_windows": 1024,
            "eval_windows": 8,
            "windows_per_part": 8,
        },
        "teacher": {"model": str(teacher), "dtype": "float32", "batch_windows": 1, "threads_per_worker": 1},
        "student": {"init": "teacher_layers", "num_layers": 1},
        "train": {"steps": 4, "global_batch": 2, "precision": "float32", "workers": 0, "threads_per_worker": 1},
        "evaluate": {"max_windows": 4},
        "ray": {"enabled": ray},
        "tracking": {"uri": f"http://127.0.0.1:{stack.settings.mlflow.port}"},
    }


def start(client: SyncPrefectClient, config: dict[str, Any]) -> FlowRun:
    distill = client.read_deployment_by_name("distill/distill")
    return client.create_flow_run_from_deployment(distill.id, parameters={"config": config})


def ended(client: SyncPrefectClient, run: FlowRun):
    """Its state at the end; a dead run's place is free after five minutes, and the look for it comes every five."""
    wait_until(lambda: client.read_flow_run(run.id).state.is_final(), seconds=900)
    return client.read_flow_run(run.id).state


def kill(stack: Stack, run: FlowRun, what: str) -> None:
    if what == RAY_WORKER:
        workers = [
            process for process in left_of(str(stack.settings.folder), WORKER) if "MapWorker" in command_of(process)
        ]
        assert workers
        for process in workers:
            process.kill()
    elif what in (PROCESS, BOTH):
        process = process_of(stack, run)
        if what == BOTH:  # first, or it says how the run ended
            os.kill(stack.pids()[WORKER], signal.SIGKILL)
        process.kill()
    else:
        os.kill(stack.pids()[what], signal.SIGKILL)


def process_of(stack: Stack, run: FlowRun) -> psutil.Process:
    engines = [p for p in left_of(str(stack.settings.folder), WORKER) if "prefect.engine" in command_of(p)]
    [process] = [p for p in engines if p.environ().get("PREFECT__FLOW_RUN_ID") == str(run.id)]
    return process


def answers_all(stack: Stack) -> bool:
    return all(answers(stack, name) for name in stack.pids())


def _only(run: FlowRun) -> FlowRunFilter:
    return FlowRunFilter.model_validate({"id": {"any_": [run.id]}})


def committed(store: s3fs.S3FileSystem, bucket: str) -> dict[str, Any]:
    """Parts of the cache with their records, and when each was written; nothing while the store is away."""
    folder = f"{bucket}/tiny/caches/default/parts"
    found = store.find(folder, detail=True) if store.exists(folder) else {}
    return {name: (entry["ETag"], entry["LastModified"]) for name, entry in found.items()}


def files(store: s3fs.S3FileSystem, bucket: str) -> dict[str, bytes]:
    """The data of a distillation, by name: corpus, cache and student; not what holds clocks."""
    names = [name for name in store.find(f"{bucket}/tiny") if name.endswith((".parquet", ".safetensors"))]
    names += [name for name in store.find(f"{bucket}/tiny/caches") if name.endswith(".json")]
    assert any("students" in name for name in names)
    return {name.removeprefix(bucket): store.cat_file(name) for name in names}
