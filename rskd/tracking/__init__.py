"""MLflow: the only room that imports it."""

from rskd.tracking.headline import log_headline, page
from rskd.tracking.runs import Run, distillation, measured_speed, one_end, stage
from rskd.tracking.system_metrics import for_workers, monitored

__all__ = [
    "Run",
    "distillation",
    "for_workers",
    "log_headline",
    "measured_speed",
    "monitored",
    "one_end",
    "page",
    "stage",
]
