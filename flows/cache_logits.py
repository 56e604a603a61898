"""Cache the teacher: packed windows ─► sampled targets in Parquet, one cache for each sampling."""

from typing import Any

from prefect import flow

from flows.dashboard import show_dashboard
from flows.stage import publish, run_stage, show_status
from rskd.config import DistillConfig


@flow(name="cache-logits", flow_run_name="cache-{config.name}")
def cache_logits(config: DistillConfig) -> dict[str, dict[str, Any]]:
    """Run the teacher once over the packed corpus and write a cache for each entry of samplings."""
    from rskd.jobs.cache import cache_logits as stage

    show_status(config)
    summaries = run_stage("cache", stage, config)
    publish("caches", f"Logit caches of {config.name}", summaries)
    if not all(summary["skipped"] for summary in summaries.values()):
        show_dashboard(config)
    return summaries
