"""What MLflow remembers beside the outputs: versions of registered models, and the stages that failed last."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rskd.tracking.connection import client_of, explained, is_absent
from rskd.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS
from rskd.tracking.runs import DISTILLATION, STAGE

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PAGE = 1000


def champions(tracking_uri: str) -> list[dict[str, Any]]:
    """Every version of every registered model that rskd made, the newest first: its aliases, verdict, reason, ledger.

    Raises ConfigError where MLflow does not answer. Nothing is created by asking.
    """
    if is_absent(tracking_uri):
        return []
    with explained(tracking_uri, writing=False):
        client = client_of(tracking_uri)
        models = {model.name: model for model in _all(client.search_registered_models)}
        versions = [version for name in models for version in _all(client.search_model_versions, f"name = '{name}'")]
    rows = []
    for version in versions:
        if "rskd.verdict" not in version.tags:
            continue
        number = int(version.version)
        aliases = {alias for alias, of in models[version.name].aliases.items() if int(of) == number}
        rows.append(
            {
                "model": version.name,
                "version": number,
                "aliases": [alias for alias in (CHAMPION, CHALLENGER, PREVIOUS) if alias in aliases],
                "created": version.creation_timestamp / 1000,
                **{name: version.tags.get(f"rskd.{name}") for name in ("verdict", "reason", "against")},
                "ledger": json.loads(version.tags.get("rskd.ledger", "[]")),
            }
        )
    return sorted(rows, key=lambda row: -row["created"])


def failures(tracking_uri: str) -> dict[str, dict[str, Any]]:
    """The newest stage of each distillation that failed or was stopped and did not end well since, by its folder.

    Raises ConfigError where MLflow does not answer. Nothing is created by asking.
    """
    if is_absent(tracking_uri):
        return {}
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    with explained(tracking_uri, writing=False):
        client = client_of(tracking_uri)
        parents = {run.info.run_id: run for run in _runs(client, f"tags.`{STAGE}` = 'distillation'")}
        failed = [run for status in ("FAILED", "KILLED") for run in _runs(client, f"attributes.status = '{status}'")]
    found: dict[str, dict[str, Any]] = {}
    for run in sorted(failed, key=lambda run: run.info.end_time or 0):
        parent = parents.get(run.data.tags.get(MLFLOW_PARENT_RUN_ID, ""))
        if parent is not None and parent.info.status in ("FAILED", "KILLED"):
            ended = (run.info.end_time or 0) / 1000
            found[parent.data.tags[DISTILLATION]] = {
                "stage": run.info.run_name,
                "status": run.info.status.lower(),
                "ended": ended,
            }
    return found


def _runs(client: MlflowClient, query: str) -> list[Any]:
    experiments = [experiment.experiment_id for experiment in _all(client.search_experiments)]
    return list(_all(client.search_runs, experiments, query))


def _all(search: Callable[..., Any], *query: Any) -> Iterator[Any]:
    """What a search finds, page by page."""
    token = None
    while True:
        page = search(*query, max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
