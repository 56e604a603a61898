"""Pack the corpus: text ─► packed windows, for training and held out."""

from typing import Any

from prefect import flow

from flows.dashboard import show_dashboard
from flows.stage import publish, run_stage, show_status
from rskd.config import DistillConfig


@flow(name="pack-corpus", flow_run_name="pack-{config.name}")
def pack_corpus(config: DistillConfig) -> dict[str, Any]:
    """Cut the source's documents into windows of seq_len + 1 tokens; hold some documents out for evaluation."""
    from rskd.jobs.pack import pack_corpus as stage

    show_status(config)
    summary = run_stage("pack", stage, config)
    publish("corpus", f"Packed corpus of {config.name}", {"corpus": summary})
    if not summary["skipped"]:
        show_dashboard(config)
    return summary
