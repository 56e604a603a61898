"""Every flow as a deployment to a pool of process workers: one list, registered the same way wherever it is used.

    make up        # the stack's server and worker (infra/README.md), which registers them
    make serve     # the light way, in the foreground: or python -m flows.deployments
    python -m flows.deployments --register-only --set ray.address=…    # a cluster, whose workers run elsewhere

With PREFECT_API_URL set, `make serve` registers with that server; otherwise it starts one on http://127.0.0.1:4200.

The form of each deployment is the documented configuration, filled in with flows/configs/demo.yaml; that of
`post-train` a tuning, filled in with tulu.yaml, and the distillation before it; that of `reproduce-paper` its scale and
text. Registering again updates what is declared here, and leaves what a user switches: whether a deployment is paused
or an automation disabled, and every schedule. A process worker starts each run in a session of its own, and Cancel ends
all of it; Prefect's `serve` would leave children alive, and pause the schedules when it stops.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    GlobalConcurrencyLimitCreate,
    WorkPoolCreate,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    get_current_settings,
    temporary_settings,
)
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker

from flows.adapt_teacher import adapt_teacher
from flows.automations import register_automations
from flows.cache_logits import cache_logits
from flows.crash_dead_runs import HEARTBEAT_SECONDS, TAG, crash_dead_runs
from flows.distill import distill
from flows.evaluate_student import evaluate_student
from flows.judge import judge
from flows.pack_corpus import pack_corpus
from flows.post_train import post_train
from flows.registry import promote, rollback
from flows.reproduce_paper import reproduce_paper
from flows.retrain import retrain
from flows.settings import run_app
from flows.stage import SHARED_LIMIT
from flows.train_student import train_student
from flows.watch_source import watch_source
from rskd.cli import Outcome, SetOption
from rskd.config import load_config
from rskd.errors import ConfigError, first_line

_CONFIGS = Path(__file__).parent / "configs"
EXAMPLE = _CONFIGS / "demo.yaml"
POOL = "rskd"
STARTUP_SECONDS = 120
_SECONDS_TO_START = 600  # a run that a worker took and never began gives its place back after that


@dataclass(frozen=True)
class Declared:
    """A deployment of a flow, named as the flow; schedules by their slug, cron expressions in UTC.

    They start switched off, unless `scheduled`.
    """

    flow: Flow[..., Any]
    tag: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    schedules: Mapping[str, str] = field(default_factory=dict)
    scheduled: bool = False
    example: Path = EXAMPLE  # what the form is filled in with


DEPLOYMENTS: Sequence[Declared] = (
    Declared(distill, "distillation", schedules={"weekly": "0 3 * * 0"}),
    Declared(pack_corpus, "stage"),
    Declared(cache_logits, "stage"),
    Declared(train_student, "stage", {"student": "rskd"}),
    Declared(evaluate_student, "stage"),
    Declared(judge, "stage"),
    Declared(adapt_teacher, "distillation"),
    Declared(post_train, "distillation", example=_CONFIGS / "tulu.yaml"),
    Declared(retrain, "retraining", {"student": "rskd"}, schedules={"nightly": "0 2 * * *"}),
    Declared(watch_source, "retraining", {"student": "rskd"}, schedules={"ten-minutes": "*/10 * * * *"}),
    Declared(crash_dead_runs, "housekeeping", schedules={"five-minutes": "*/5 * * * *"}, scheduled=True),
    Declared(promote, "registry", {"model": "demo"}),
    Declared(rollback, "registry", {"model": "demo"}),
    Declared(
        reproduce_paper,
        "study",
        {"scale": "cpu-small", "source": {"kind": "python_docs"}, "home": ".rskd/paper-cpu-small"},
    ),
)


def register(
    *,
    pool: str = POOL,
    directory: Path | None = None,
    tracking_uri: str | None = None,
    overrides: Sequence[str] = (),
) -> list[str]:
    """Create or update the deployments, their pool, the automations, and the limit that stages share.

    Returns the names of the deployments.

    Runs work in `directory` (the current one), to which relative paths of a configuration refer, and track to
    `tracking_uri` unless their form says otherwise. Forms are filled in with `overrides`, each section.key=value. The
    server is the one that PREFECT_API_URL names.
    """
    if tracking_uri is not None:
        overrides = [*overrides, f"tracking.uri={tracking_uri}"]
    with get_client(sync_client=True) as client:
        _create_once(client, pool)
        for declared in DEPLOYMENTS:
            given = {
                "config": _filled_in(declared.example, overrides),
                "before": _filled_in(EXAMPLE, overrides),
                "tracking_uri": tracking_uri or "",
            }
            taken = {name: value for name, value in given.items() if name in signature(declared.flow.fn).parameters}
            parameters = {**taken, **declared.parameters}
            fields = _fields(declared, parameters) | {
                "work_pool_name": pool,
                "job_variables": {
                    "working_dir": str((directory or Path.cwd()).resolve()),
                    "env": {PREFECT_FLOWS_HEARTBEAT_FREQUENCY.name: str(HEARTBEAT_SECONDS)},
                },
            }
            _create_or_update(client, declared, fields)
        register_automations(client)
    return [declared.flow.name for declared in DEPLOYMENTS]


def _filled_in(example: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """A configuration as the form shows it."""
    return load_config(example, overrides).model_dump(mode="json", exclude_unset=True)


def _fields(declared: Declared, parameters: dict[str, Any]) -> dict[str, Any]:
    """What is declared, and the same whether the deployment is new or known."""
    flow = declared.flow
    return {
        "description": flow.description,
        "tags": [TAG, declared.tag],
        "parameters": parameters,
        "parameter_openapi_schema": parameter_schema(flow).model_dump_for_openapi(),
        "enforce_parameter_schema": True,
        "concurrency_limit": 1,
        "concurrency_options": ConcurrencyOptions(
            collision_strategy=ConcurrencyLimitStrategy.ENQUEUE, grace_period_seconds=_SECONDS_TO_START
        ),
        "entrypoint": f"{flow.__module__}.{flow.fn.__name__}",
        "path": None,
        "pull_steps": [],
    }


def _create_or_update(client: SyncPrefectClient, declared: Declared, fields: dict[str, Any]) -> None:
    """Send nothing that a user may have switched: an update leaves out `paused` and `schedules`.

    A declared schedule that a known deployment lacks is added, as to a new one. One without a slug and with the same
    times is what earlier releases made of it.
    """
    name = declared.flow.name
    schedules = {
        slug: DeploymentScheduleCreate(
            schedule=CronSchedule(cron=cron, timezone="UTC"), active=declared.scheduled, slug=slug
        )
        for slug, cron in declared.schedules.items()
    }
    try:
        known = client.read_deployment_by_name(f"{name}/{name}")
    except ObjectNotFound:
        flow_id = client.create_flow_from_name(name)
        client.create_deployment(flow_id, name, schedules=list(schedules.values()), **fields)
        return
    client.update_deployment(known.id, DeploymentUpdate(**fields))
    there = {schedule.slug or getattr(schedule.schedule, "cron", None) for schedule in known.schedules}
    missing = [schedule for slug, schedule in schedules.items() if not there & {slug, declared.schedules[slug]}]
    if missing:
        client.create_deployment_schedules(known.id, missing)


def _create_once(client: SyncPrefectClient, pool: str) -> None:
    """The pool, and the limit of one stage at a time; a user may have changed either, so they are made but once."""
    try:
        client.read_work_pool(pool)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=pool, type=ProcessWorker.type, base_job_template=template))
    try:
        client.read_global_concurrency_limit_by_name(SHARED_LIMIT)
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=SHARED_LIMIT, limit=1))


@contextmanager
def local_server(host: str = "127.0.0.1", port: int = 4200) -> Iterator[None]:
    """A Prefect server and its UI on loopback, for as long as the context lasts."""
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port)]
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    server = subprocess.Popen(command, env=os.environ | settings)
    try:
        with temporary_settings({PREFECT_API_URL: f"http://{host}:{port}/api"}):
            _wait_until_healthy(server)
            yield
    finally:
        server.terminate()
        server.wait()


def _wait_until_healthy(server: subprocess.Popen) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    with get_client(sync_client=True) as client:
        while client.api_healthcheck() is not None:
            if server.poll() is not None or time.monotonic() > deadline:
                raise ConfigError("the Prefect server did not start: correct what its messages above name")
            time.sleep(1)


def _require_server() -> None:
    url = get_current_settings().api.url
    if not url:
        raise ConfigError("PREFECT_API_URL is not set: name the server to register with, as http://HOST:4200/api")
    with get_client(sync_client=True) as client:
        if (error := client.api_healthcheck()) is not None:
            reason = first_line(error)
            raise ConfigError(f"PREFECT_API_URL={url} does not answer ({reason}): start the server, or correct the URL")


def _work(tracking_uri: str | None, overrides: Sequence[str]) -> None:
    """Register, and be a worker until interrupted."""
    register(tracking_uri=tracking_uri, overrides=overrides)
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    command += ["--name", f"serve-{os.uname().nodename}"]  # by which `crash_dead_runs` knows the machine
    subprocess.run(command, env=os.environ | settings)


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    register_only: Annotated[bool, typer.Option("--register-only", help="Start neither worker nor server.")] = False,
    tracking_uri: Annotated[str | None, typer.Option(metavar="URI", help="MLflow, as the forms name it.")] = None,
    overrides: SetOption = None,
) -> Outcome:
    """Register every flow as a deployment and run a worker for them, with a server where none is set."""
    overrides = overrides or []
    if register_only:
        _require_server()
        return Outcome({"deployments": register(tracking_uri=tracking_uri, overrides=overrides)}, "registered")
    if get_current_settings().api.url:
        _work(tracking_uri, overrides)
    else:
        with local_server():
            _work(tracking_uri, overrides)
    return Outcome({"deployments": [declared.flow.name for declared in DEPLOYMENTS]}, "worker stopped")


if __name__ == "__main__":
    run_app(app)
