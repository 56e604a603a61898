"""What was measured of the students of a distillation, as the page needs it."""

from __future__ import annotations

from typing import Any

from rskd import records
from rskd.dashboard.curves import rounded
from rskd.errors import MissingOutputError
from rskd.evaluation.downstream import mean_score
from rskd.evaluation.promotion import named_teacher
from rskd.evaluation.results import PROMOTIONS, SPECULATIVE, WINDOW_VALUES, read_table, same_models, task_file
from rskd.evaluation.window_values import from_parquet
from rskd.storage import Store
from rskd.student.checkpoint import student_digest

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
    teacher = named_teacher(recipe["teacher"]["fingerprint"], recipe["teacher"]["dtype"])
    return {
        "windows": evaluation["windows"],
        "tokens": evaluation["tokens"],
        "corpus": recipe["corpus"],
        "students": recipe["students"],
        "teacher": models["teacher"],
        "models": models,
        "comparable": _comparable(teacher, recipe["corpus"], recipe["num_windows"]),
    }


def measured(home: Store, name: str, record: dict[str, Any], evaluation: dict[str, Any] | None) -> dict[str, Any]:
    """What was measured of these weights: by the evaluation, else when they were judged for the registry, else nothing.

    `measured` has the metrics, `windows` says on how many, `comparable` is that of `read_evaluation`.
    """
    if evaluation and evaluation["students"].get(name) == records.digest(record):
        return {"measured": evaluation["models"][name], **{key: evaluation[key] for key in ("windows", "comparable")}}
    judged = records.read(home.child(PROMOTIONS), f"{name}.json")
    if judged is None or judged["recipe"]["student"] != student_digest(record):
        return {"measured": None}
    recipe = judged["recipe"]
    metrics = {row["metric"]: row["challenger"] for row in judged["decision"]["ledger"]}
    return {
        "measured": metrics if metrics else None,
        "windows": recipe["num_windows"],
        "comparable": _comparable(recipe["teacher"], recipe["windows"], recipe["num_windows"]),
    }


def rated(judged: dict[str, Any]) -> dict[str, Any]:
    """The verdict of a judge on each set of prompts, and who that was."""
    shown = ("score", "low", "high", "answers", "answers_counted")
    sets = {name: {key: verdict[key] for key in shown} for name, verdict in judged["sets"].items()}
    return {"judge": judged["judge"]["model"], "sets": sets, "warnings": judged["warnings"]}


def _comparable(teacher: str, corpus: str, num_windows: int) -> str:
    return records.digest({"teacher": teacher, "corpus": corpus, "num_windows": num_windows})[:12]


def _windows(home: Store, evaluation: dict[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """Means over each of the first windows, by model and metric, and the `tokens` that they are of."""
    try:
        data = read_table(home, WINDOW_VALUES, evaluation)
    except MissingOutputError:
        return {}
    if data is None:
        return {}
    return {
        name: {metric: rounded(values.means[metric][:_MOST_WINDOWS]) for metric in _COMPARED}
        | {"tokens": values.tokens[:_MOST_WINDOWS].tolist()}
        for name, values in from_parquet(data).items()
    }
