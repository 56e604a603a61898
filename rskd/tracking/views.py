"""Views of the runs of an experiment, saved with it: MLflow's own first page shows no metric, and each stage as a row.

MLflow keeps a view as a tag of the experiment, by a key that its address names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

OPENED_WITH = "workflowType=machine_learning"  # else a browser that comes for the first time sees pages about agents
_TAG, _KEY = "mlflow.sharedViewState.", "distillations"
_MADE = "rskd.views"  # a view that a user removes is not made again
_COLUMNS = ("lm_loss", "kl_to_teacher", "ece", "acceptance", "bytes_per_token", "tokens_per_s")
_STATE = {
    "searchFilter": "tags.`rskd.stage` = 'distillation'",
    "orderByKey": "attributes.start_time",
    "orderByAsc": False,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "selectedColumns": [f"metrics.`{column}`" for column in _COLUMNS],
}
TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    f"{_TAG}{_KEY}": json.dumps({"name": "Distillations", "createdAt": 0, "updatedAt": 0, "state": json.dumps(_STATE)}),
    _MADE: _KEY,
}


def are_missing(tags: Mapping[str, str]) -> bool:
    """Whether an experiment with these tags was made before there were views."""
    return _MADE not in tags


def distillations_url(server: str, experiment_id: str) -> str:
    """The page with a row for each distillation and a column for each of its figures."""
    return f"{server}/#/experiments/{experiment_id}/runs?viewStateShareKey={_KEY}&{OPENED_WITH}"
