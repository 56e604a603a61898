"""Train students: cache ─► loader ─► loss and DDP ─► Hugging Face directories."""

from typing import Any

from prefect import flow

from flows.dashboard import show_dashboard
from flows.stage import publish, run_stage, show_status
from rskd.config import DistillConfig


@flow(name="train-student", flow_run_name="train-{config.name}-{student}")
def train_student(config: DistillConfig, student: str = "default") -> dict[str, Any]:
    """Train one student of the configuration with Ray Train."""
    from rskd.jobs.train import train_student as stage

    show_status(config)
    summary = run_stage(f"train {student}", stage, config, student)
    publish("student", f"Training of {student} of {config.name}", {student: summary})
    if not summary["skipped"]:
        show_dashboard(config)
    return summary
