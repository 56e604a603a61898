"""Judge: students answer sets of prompts, and a large model rates the answers beside references."""

from typing import Any

from prefect import flow

from flows.dashboard import show_dashboard
from flows.stage import publish, run_stage, show_status
from rskd.config import DistillConfig


@flow(name="judge", flow_run_name="judge-{config.name}")
def judge(config: DistillConfig) -> dict[str, Any]:
    """Generate the answers that are missing, and have them rated; the key is in the environment of the worker."""
    from rskd.jobs.judge import judge_models

    show_status(config)
    found = run_stage("judge", judge_models, config)
    rows = {
        f"{model} on {name}": verdict
        for model, verdicts in found["models"].items()
        for name, verdict in verdicts.items()
        if isinstance(verdict, dict)
    }
    publish("verdicts", f"Verdicts of {found['judge']} on {config.name}", rows)
    if not all(verdicts["skipped"] for verdicts in found["models"].values()):
        show_dashboard(config)
    return found
