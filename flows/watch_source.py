"""Watch a corpus source: list it ─► a digest of its files ─► retrain, once for each digest.

A scheduled look is sturdier than events, of which a burst would start many runs or lose all but its first.
"""

from __future__ import annotations

from typing import Any, cast

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment

from rskd import records
from rskd.config import DistillConfig
from rskd.corpus.sources import list_files, located


@flow(name="watch-source", flow_run_name="watch-{config.name}")
def watch_source(config: DistillConfig, student: str | None = None) -> dict[str, Any]:
    """Start `retrain` if the files of the source are not those of any look before; their names and sizes tell.

    The deployment `retrain` must be registered. Returns the digest and the run that was started for it, now or before.
    """
    files = list_files(located(config.corpus.source), outputs=[config.storage.root, config.home])
    digest = records.digest({file.name: file.size for file in files})
    parameters = {"config": config.model_dump(mode="json", exclude_unset=True), "student": student}
    run = cast(
        FlowRun,
        run_deployment(
            "retrain/retrain",
            parameters=parameters,
            idempotency_key=f"{config.name} {student} {digest}",  # the same key again is the same run
            timeout=0,
            as_subflow=False,
        ),
    )
    get_run_logger().info("%s files, digest %s: run %s, %s", f"{len(files):,}", digest[:12], run.name, run.state_name)
    return {"files": len(files), "digest": digest, "run": run.name}
