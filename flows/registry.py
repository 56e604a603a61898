"""The registry from the Prefect UI: `rskd promote` and `rskd rollback` as flows."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from rskd.tracking.registry import Registry


@flow(name="promote", flow_run_name="promote-{model}")
def promote(model: str, version: int | None = None, tracking_uri: str = "") -> dict[str, Any]:
    """Make a version of a registered model the champion by hand, whatever the gate said of it.

    `version`: the challenger if left out. `tracking_uri`: the MLflow that has it; that of .rskd if empty.
    """
    registry = Registry.at(tracking_uri, model)
    registry.promote(registry.challenger().version if version is None else version)
    return _shown(registry)


@flow(name="rollback", flow_run_name="rollback-{model}")
def rollback(model: str, tracking_uri: str = "") -> dict[str, Any]:
    """Make the champion of before the champion again; once more takes that back.

    `tracking_uri`: the MLflow that has the model; that of .rskd if empty.
    """
    registry = Registry.at(tracking_uri, model)
    registry.rollback()
    return _shown(registry)


def _shown(registry: Registry) -> dict[str, Any]:
    """What has an alias now, as a table artifact too."""
    summary = registry.summary()
    rows = [{"alias": alias, **version} for alias, version in summary.items() if isinstance(version, dict)]
    create_table_artifact(key="registry", table=rows, description=f"Versions of {registry.name} in use")
    return summary
