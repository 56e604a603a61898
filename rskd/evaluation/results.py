"""What `rskd evaluate` leaves behind: a sealed file for each part of it, all of the same models.

<home>/evaluation.json                  held-out windows: METRICS, standard errors, reliability
<home>/evaluation/speculative.json      students as drafts of the teacher
<home>/evaluation/task-<task>.json      zero-shot scores
"""

from __future__ import annotations

from typing import Any

from rskd import records
from rskd.config import DistillConfig
from rskd.storage import Store

SPECULATIVE = "evaluation/speculative.json"
_MODELS = ("teacher", "students")  # of a recipe: which weights were evaluated


def windows_file(config: DistillConfig) -> str:
    """Name, below `config.home`, of the file of the held-out windows."""
    return config.evaluation_uri.removeprefix(f"{config.home}/")


def task_file(task: str) -> str:
    """Name, below `config.home`, of the file of one downstream task."""
    return f"evaluation/task-{task}.json"


def read_results(config: DistillConfig) -> dict[str, Any] | None:
    """The file of the held-out windows, its models with what other parts found of the same weights; None without one.

    Adds to a model `speculative` and `tasks` {task: {metric: …}}, for what `config` asks for.
    """
    store = Store(config.home)
    evaluation = records.read(store, windows_file(config))
    if evaluation is None:
        return None
    for task in config.evaluate.tasks:
        for model, metrics in _same_models(store, task_file(task), evaluation).items():
            evaluation["models"][model].setdefault("tasks", {})[task] = metrics
    if config.evaluate.speculative is not None:
        for model, found in _same_models(store, SPECULATIVE, evaluation).items():
            evaluation["models"][model]["speculative"] = found
    return evaluation


def _same_models(store: Store, name: str, evaluation: dict[str, Any]) -> dict[str, Any]:
    part = records.read(store, name)
    if part is None or any(part["recipe"][key] != evaluation["recipe"][key] for key in _MODELS):
        return {}
    return part["models"]
