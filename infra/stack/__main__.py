"""make up, make status, make logs and make down."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from infra.stack.services import (
    WORKER,
    Service,
    credentials_of,
    environment_of,
    make_folders,
    missing_services,
    services_of,
    short_ray_folder,
)
from infra.stack.settings import StackSettings, load_settings
from infra.stack.supervision import Supervisor, configuration, configuration_path, log_of
from rskd.cli import Outcome, run_app
from rskd.errors import ConfigError
from rskd.file_lock import file_lock

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

FileOption = Annotated[Path, typer.Option("--file", metavar="FILE", help="Ports and folders.")]
DEFAULT = Path(__file__).parents[1] / "stack.toml"


@app.command()
def up(file: FileOption = DEFAULT) -> Outcome:
    """Start what is not running, wait until each service answers, and register the deployments."""
    began = time.monotonic()
    settings = load_settings(file)
    services = services_of(settings)
    make_folders(settings)
    with file_lock(settings.folder / "lock"):
        supervisor = Supervisor(settings)
        _launch(supervisor, settings, services)
        names = _start(supervisor, settings, services)
    rows = {service.name: service.address for service in services}
    rows |= dict.fromkeys(missing_services(settings), "not installed, left out")
    rows |= {"deployments": ", ".join(names), "data and logs": str(settings.folder)}
    rows |= {"for a shell": f"set -a; . {_environment_file(settings)}", "seconds": time.monotonic() - began}
    return Outcome(rows, "the stack answers")


@app.command()
def status(file: FileOption = DEFAULT) -> Outcome:
    """Say of each service whether it runs and answers; exit 2 where one does not."""
    settings = load_settings(file)
    known = _running(settings).processes()
    rows, well = {}, True
    for service in services_of(settings):
        info = known.get(service.name, {"statename": "STOPPED", "description": "not started"})
        answers = info["statename"] in ("STARTING", "RUNNING") and service.answers()
        advice = f"make up, or see {log_of(settings, service.name)}"
        said = f"answers at {service.address}" if answers else f"does not answer: {advice}"
        rows[service.name] = f"{info['statename'].lower()}, {info['description']}, {said}"
        well &= answers
    return Outcome(rows, f"the stack in {settings.folder}", exit_code=0 if well else ConfigError.exit_code)


@app.command()
def logs(
    service: Annotated[str | None, typer.Argument(help="One service; all by default.")] = None,
    follow: Annotated[bool, typer.Option(help="Go on until interrupted.")] = False,
    file: FileOption = DEFAULT,
) -> None:
    """Show the last lines of the logs."""
    settings = load_settings(file)
    found = sorted(settings.logs.glob("*.log"))
    chosen = [log for log in found if service in (None, log.stem)]
    if not chosen:
        there = ", ".join(log.stem for log in found) or "none yet: make up"
        raise ConfigError(f"no log of {service or 'any service'} in {settings.logs}: name one of {there}")
    os.execvp("tail", ["tail", "-n", "40", *(["-F"] if follow else []), *map(str, chosen)])


@app.command()
def down(file: FileOption = DEFAULT) -> Outcome:
    """Stop everything that the stack started; data and logs stay."""
    settings = load_settings(file)
    if not settings.folder.exists():
        return Outcome({"data": f"none in {settings.folder}"}, "no stack was started")
    with file_lock(settings.folder / "lock"):
        Supervisor(settings).stop()
        short_ray_folder(settings).unlink(missing_ok=True)
    return Outcome({"data and logs": str(settings.folder)}, "the stack is down")


def _launch(supervisor: Supervisor, settings: StackSettings, services: list[Service]) -> None:
    """Have supervisord run with these settings."""
    wanted, path = configuration(settings, services), configuration_path(settings)
    if supervisor.is_running:
        if path.read_text() != wanted:
            raise ConfigError(f"the stack in {settings.folder} runs with other settings: make down, then make up")
        return
    path.write_text(wanted)
    supervisor.launch(services)


def _start(supervisor: Supervisor, settings: StackSettings, services: list[Service]) -> list[str]:
    """All at once but for the worker, which needs the pool that is registered. The names of the deployments."""
    worker = next(service for service in services if service.name == WORKER)
    servers = [service for service in services if service is not worker]
    for service in servers:
        supervisor.start(service)
    for service in servers:
        supervisor.wait_for(service)
    names = _register(settings)
    supervisor.start(worker)
    supervisor.wait_for(worker)
    _write_environment(settings)
    return names


def _register(settings: StackSettings) -> list[str]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.deployments import register

    ours = environment_of(settings)
    with temporary_settings({PREFECT_API_URL: ours["PREFECT_API_URL"]}):
        return register(pool=settings.prefect.pool, tracking_uri=ours["MLFLOW_TRACKING_URI"])


def _running(settings: StackSettings) -> Supervisor:
    supervisor = Supervisor(settings)
    if not supervisor.is_running:
        raise ConfigError(f"no stack runs in {settings.folder}: make up")
    return supervisor


def _environment_file(settings: StackSettings) -> Path:
    return settings.folder / "environment"


def _write_environment(settings: StackSettings) -> None:
    path = _environment_file(settings)
    path.touch(mode=0o600)
    lines = (environment_of(settings) | credentials_of(settings)).items()
    path.write_text("".join(f"{name}={value}\n" for name, value in lines))


if __name__ == "__main__":
    run_app(app)
