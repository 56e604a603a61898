"""What `rskd evaluate` leaves behind: a sealed file for each part of it, all of the same models.

<home>/evaluation.json                  held-out windows: METRICS, standard errors, reliability
<home>/evaluation/windows-<digest>.parquet    the same window by window; evaluation.json has its name and sha256
<home>/evaluation/speculative.json      students as drafts of the teacher
<home>/evaluation/task-<task>.json      zero-shot scores
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from rskd import records
from rskd.config import DistillConfig
from rskd.errors import CorruptPartError, MissingOutputError
from rskd.evaluation.promotion import Measured
from rskd.evaluation.window_values import WindowValues, from_parquet, to_parquet
from rskd.storage import Store

SPECULATIVE = "evaluation/speculative.json"
WINDOW_VALUES = "window_values"  # of evaluation.json: the file with the values of single windows
_FOLDER = "evaluation"
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
        for model, metrics in same_models(store, task_file(task), evaluation).items():
            evaluation["models"][model].setdefault("tasks", {})[task] = metrics
    if config.evaluate.speculative is not None:
        for model, found in same_models(store, SPECULATIVE, evaluation).items():
            evaluation["models"][model]["speculative"] = found
    return evaluation


def same_models(store: Store, name: str, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What another part found of the models of `evaluation`; nothing if it is not there, or of other weights."""
    part = records.read(store, name)
    if part is None or any(part["recipe"][key] != evaluation["recipe"][key] for key in _MODELS):
        return {}
    return part["models"]


def write_window_values(store: Store, models: Mapping[str, WindowValues]) -> dict[str, str]:
    """Write the values of single windows; returns what `evaluation.json` says of the file, under WINDOW_VALUES.

    The name has the digest in it, so that the older file stays whole until `evaluation.json` names the new one.
    """
    data = to_parquet(models)
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"{_FOLDER}/windows-{sha256[:12]}.parquet"
    store.write(name, data)
    return {"file": name, "sha256": sha256}


def remove_older_window_values(store: Store, evaluation: Mapping[str, Any]) -> None:
    """Remove the files of single windows that `evaluation` does not name."""
    for name in store.list(_FOLDER):
        stale = name.startswith("windows-") and f"{_FOLDER}/{name}" != evaluation[WINDOW_VALUES]["file"]
        if stale:
            store.remove(f"{_FOLDER}/{name}")


def has_window_values(store: Store, evaluation: Mapping[str, Any]) -> bool:
    """Whether the file that `evaluation` names is there; an evaluation of before there was one names none: True."""
    return WINDOW_VALUES not in evaluation or store.exists(evaluation[WINDOW_VALUES]["file"])


def read_measured(config: DistillConfig) -> dict[str, Measured]:
    """The teacher and each student as `rskd evaluate` measured them, window by window.

    Raises MissingOutputError where there is no evaluation, or one without values of single windows, and
    CorruptPartError where their file is not what was written.
    """
    store = Store(config.home)
    evaluation = records.read(store, windows_file(config))
    if evaluation is None:
        raise MissingOutputError(f"{config.evaluation_uri} does not exist: run rskd evaluate")
    if WINDOW_VALUES not in evaluation:
        raise MissingOutputError(
            f"{config.evaluation_uri} has no values of single windows, an older rskd wrote it: remove it and run "
            "rskd evaluate"
        )
    file = evaluation[WINDOW_VALUES]
    try:
        data = store.read(file["file"])
    except MissingOutputError:
        raise MissingOutputError(f"{config.home}/{file['file']} is missing: run rskd evaluate") from None
    if hashlib.sha256(data).hexdigest() != file["sha256"]:
        raise CorruptPartError(
            f"{config.home}/{file['file']} is not what was written (its sha256 does not match): remove it and run "
            "rskd evaluate"
        )
    teacher = evaluation["recipe"]["teacher"]
    return {
        name: Measured(
            tokenizer=evaluation["tokenizer"],
            teacher=f"{teacher['fingerprint']} in {teacher['dtype']}",
            held_out=evaluation["recipe"]["corpus"],
            values=values,
        )
        for name, values in from_parquet(data).items()
    }
