"""Evaluate: students and teacher on the held-out windows ─► metrics and reliability diagrams."""

from typing import Any

from prefect import flow

from flows.dashboard import show_dashboard
from flows.stage import publish, run_stage, show_status
from rskd.config import DistillConfig


@flow(name="evaluate-student", flow_run_name="evaluate-{config.name}")
def evaluate_student(config: DistillConfig) -> dict[str, Any]:
    """Evaluate every student of the configuration, and the teacher, in one pass of the teacher."""
    from rskd.jobs.at_work import costs_of
    from rskd.jobs.evaluate import evaluate_students as stage

    show_status(config)
    metrics = run_stage("evaluate", stage, config)
    cost = {"cost": costs_of(config, "evaluate")}
    publish("evaluation-cost", f"Cost of the evaluation of {config.name}", {"evaluate": cost})
    publish("metrics", f"Held-out metrics of {config.name}", {k: v for k, v in metrics.items() if isinstance(v, dict)})
    if not metrics["skipped"]:
        show_dashboard(config)
    return metrics
