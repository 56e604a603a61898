"""What was measured of the students of a distillation, as the page needs it."""

from __future__ import annotations

from typing import Any

from rskd import records
from rskd.dashboard.curves import rounded
from rskd.errors import MissingOutputError
from rskd.evaluation.downstream import mean_score
from rskd.evaluation.results import SPECULATIVE, WINDOW_VALUES, same_models, task_file
from rskd.evaluation.window_values import from_parquet
from rskd.storage import Store

_FILE, _FOLDER = "evaluation.json", "evaluation"
_COMPARED = ("lm_loss", "kl_to_teacher", "acceptance")
_MOST_WINDOWS = 512  # of which single values are shown


def read_evaluation(home: Store) -> dict[str, Any] | None:
    """The models of an evaluation with their values on single windows, tasks and speculation; None without one.

    `comparable` is one for evaluations of the same held-out windows beside the same teacher.
    """
    evaluation = records.read(home, _FILE)
    if evaluation is None:
        return None
    recipe, models = evaluation["recipe"], evaluation["models"]
    windows = _windows(home, evaluation)
    for name, model in models.items():
        model["windows"] = windows.get(name)
    for name, found in same_models(home, SPECULATIVE, evaluation).items():
        models[name]["speculative"] = found
    for file in home.list(_FOLDER):
        if file.startswith("task-"):
            task = file.removeprefix("task-").removesuffix(".json")
            for name, found in same_models(home, task_file(task), evaluation).items():
                models[name].setdefault("tasks", {})[task] = found
    for model in models.values():
        model["downstream"] = mean_score(model.get("tasks", {}))
    teacher = recipe["teacher"]
    return {
        "windows": evaluation["windows"],
        "tokens": evaluation["tokens"],
        "corpus": recipe["corpus"],
        "students": recipe["students"],
        "teacher": models["teacher"],
        "models": models,
        "comparable": records.digest(
            {"teacher": teacher, "corpus": recipe["corpus"], "num_windows": recipe["num_windows"]}
        )[:12],
    }


def _windows(home: Store, evaluation: dict[str, Any]) -> dict[str, dict[str, list[float | None]]]:
    """Means over each of the first windows, by model and metric."""
    if WINDOW_VALUES not in evaluation:
        return {}
    try:
        data = home.read(evaluation[WINDOW_VALUES]["file"])
    except MissingOutputError:
        return {}
    return {
        name: {metric: rounded(values.means[metric][:_MOST_WINDOWS]) for metric in _COMPARED}
        for name, values in from_parquet(data).items()
    }
