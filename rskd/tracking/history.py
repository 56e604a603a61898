"""What MLflow remembers beside the outputs: versions of registered models, and the stages that failed last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rskd.tracking.connection import client_of, explained, sqlite_path
from rskd.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS
from rskd.tracking.runs import DISTILLATION, STAGE

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PAGE = 1000


def champions(tracking_uri: str) -> list[dict[str, Any]]:
    """Every version of every registered model that rskd made, the newest first: its aliases, verdict and reason.

    Raises ConfigError where MLflow does not answer. Nothing is created by asking.
    """
    if _is_absent(tracking_uri):
        return []
    with explained(tracking_uri, writing=False):
        client = client_of(tracking_uri)
        models = {model.name: model for model in client.search_registered_models()}
        versions = [version for name in models for version in client.search_model_versions(f"name = '{name}'")]
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
                "description": version.description,
                **{key.removeprefix("rskd."): value for key, value in version.tags.items()},
            }
        )
    return sorted(rows, key=lambda row: -row["created"])


def failures(tracking_uri: str) -> dict[str, dict[str, Any]]:
    """The newest stage of each distillation that failed or was stopped and did not end well since, by its folder.

    Raises ConfigError where MLflow does not answer. Nothing is created by asking.
    """
    if _is_absent(tracking_uri):
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
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs, token = [], None
    while True:
        page = client.search_runs(experiments, query, max_results=_PAGE, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def _is_absent(tracking_uri: str) -> bool:
    """Whether the database is a file that does not exist: MLflow would make one."""
    file = sqlite_path(tracking_uri)
    return file is not None and not file.exists()
