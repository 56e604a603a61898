"""Watch a corpus source: list it ─► a digest of its files ─► retrain, once for each digest.

On a schedule, or when whoever drops files says so:

    python -m flows.watch_source CONFIG.yaml [--student NAME]                             # of any configuration
    prefect event emit rskd.source.changed --resource-id rskd.source.NAME                 # of the deployment's form

A look is sturdier than an event that starts the training itself: a burst of events would start many, or lose its last.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import typer
from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.events import Event, get_events_client
from prefect.events.schemas.events import Resource
from prefect.settings import get_current_settings

from flows.settings import run_app
from rskd import records
from rskd.cli import ConfigArgument, Outcome, SetOption, StudentOption
from rskd.config import DistillConfig, load_config
from rskd.corpus.sources import list_files, located
from rskd.errors import ConfigError, first_line

SOURCE_CHANGED = "rskd.source.changed"  # an event; its resource is SOURCE and the configuration's name
SOURCE = "rskd.source."


@flow(name="watch-source", flow_run_name="watch-{config.name}")
def watch_source(config: DistillConfig, student: str | None = None) -> dict[str, Any]:
    """Start `retrain` if the files of the source are not those of any look before; their names and sizes tell.

    The deployment `retrain` must be registered. Returns the digest, the run that was started for it, now or before, and
    whether it was now.
    """
    files = list_files(located(config.corpus.source), outputs=[config.storage.root, config.home])
    digest = records.digest({file.name: file.size for file in files})
    key = f"{config.name} {student} {digest}"
    with get_client(sync_client=True) as client:
        same = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key]))
        known = client.read_flow_runs(flow_run_filter=same, limit=1)
    run = known[0] if known else _start(config, student, key)
    said = "nothing new, it is that of" if known else "new, starting"
    get_run_logger().info(
        "%s files, digest %s: %s %s, %s", f"{len(files):,}", digest[:12], said, run.name, run.state_name
    )
    return {"files": len(files), "digest": digest, "run": run.name, "new": not known}


def _start(config: DistillConfig, student: str | None, key: str) -> FlowRun:
    """A run of `retrain`; the same key again is the same run, also where two look at once."""
    parameters = {"config": config.model_dump(mode="json", exclude_unset=True), "student": student}
    run = run_deployment("retrain/retrain", parameters=parameters, idempotency_key=key, timeout=0, as_subflow=False)
    return cast(FlowRun, run)


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    config: ConfigArgument,
    overrides: SetOption = None,
    student: StudentOption = None,
) -> Outcome:
    """Tell the Prefect server that files of a configuration's source have changed: it starts watch-source."""
    settings = load_config(config, overrides or ())
    url = get_current_settings().api.url
    if url is None:
        raise ConfigError("PREFECT_API_URL names no server: export it, or read .rskd/stack/environment")
    resource = {"prefect.resource.id": f"{SOURCE}{settings.name}"}
    payload = {"config": settings.model_dump(mode="json", exclude_unset=True), "student": student}
    try:
        asyncio.run(_emit(Event(event=SOURCE_CHANGED, resource=Resource(resource), payload=payload)))
    except Exception as error:
        raise ConfigError(f"PREFECT_API_URL {url} takes no event ({first_line(error)}): start that server") from error
    return Outcome({"event": SOURCE_CHANGED} | resource, "told Prefect")


async def _emit(event: Event) -> None:
    """As `prefect event emit`: when this returns, the server has it."""
    async with get_events_client(reconnection_attempts=0) as client:
        await client.emit(event)


if __name__ == "__main__":
    run_app(app)
