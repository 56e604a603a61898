"""MLflow: the only room that imports it."""

from rskd.tracking.runs import Run, distillation, measured_speed, stage

__all__ = ["Run", "distillation", "measured_speed", "stage"]
