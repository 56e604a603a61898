"""MLflow: the only room that imports it."""

from rskd.tracking.headline import log_headline, page
from rskd.tracking.runs import Run, distillation, measured_speed, stage

__all__ = ["Run", "distillation", "log_headline", "measured_speed", "page", "stage"]
