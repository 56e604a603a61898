"""Train students: cache ─► loader ─► loss and DDP ─► Hugging Face directories."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from prefect import flow

from flows.dashboard import show_dashboard
from flows.stage import one_turn, publish, run_stage, show_status
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


def train_students(config: DistillConfig, ended: Callable[[], None]) -> dict[str, dict[str, Any]]:
    """Train every student of the configuration, as many at once as `train.at_once` says; `ended` is called after each.

    Those side by side have one place under the shared limit. What failed is raised when all have ended.
    """
    from rskd.jobs.train_all import at_once, train_all

    def train(config: DistillConfig, student: str) -> dict[str, Any]:
        try:
            return train_student(config, student)
        finally:
            ended()

    students = list(config.student_specs)
    with one_turn("train") if at_once(config, students) > 1 else nullcontext():
        return train_all(config, students, train)
