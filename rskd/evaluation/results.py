"""What `rskd evaluate` leaves behind: a sealed file for each part of it, all of the same models.

<home>/evaluation.json                  held-out windows: METRICS, standard errors, reliability
<home>/evaluation/windows-<digest>.parquet     the same window by window (`rskd.evaluation.window_values`)
<home>/evaluation/passages-<digest>.parquet    a few passages token by token (`rskd.evaluation.passages`)
<home>/evaluation/speculative.json      students as drafts of the teacher
<home>/evaluation/task-<task>.json      zero-shot scores

evaluation.json has the names and sha256 of the two tables.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from rskd import records
from rskd.config import DistillConfig
from rskd.errors import CorruptPartError, MissingOutputError
from rskd.evaluation.promotion import Measured, named_teacher
from rskd.evaluation.window_values import from_parquet
from rskd.storage import Store

SPECULATIVE = "evaluation/speculative.json"
WINDOW_VALUES, PASSAGES = "window_values", "passages"  # of evaluation.json: its tables
PROMOTIONS = "promotions"  # folder of the newest decision on each student, <student>.json (`rskd.jobs.promote`)
_FOLDER = "evaluation"
_TABLES = {WINDOW_VALUES: "windows", PASSAGES: "passages"}  # what the names of their files begin with
_MODELS = ("teacher", "students", "dtype")  # of a recipe: which weights were evaluated, and in which precision


def windows_file(config: DistillConfig) -> str:
    """Name, below `config.home`, of the file of the held-out windows."""
    return config.evaluation_uri.removeprefix(f"{config.home}/")


def task_file(task: str) -> str:
    """Name, below `config.home`, of the file of one downstream task."""
    return f"evaluation/task-{task}.json"


def read_results(config: DistillConfig, store: Store | None = None) -> dict[str, Any] | None:
    """The file of the held-out windows, its models with what other parts found of the same weights; None without one.

    Adds to a model `speculative` and `tasks` {task: {metric: …}}, for what `config` asks for. `store` has the files
    where that is not the folder of `config`.
    """
    store = store or Store(config.home)
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
    if part is None or any(part["recipe"].get(key) != evaluation["recipe"].get(key) for key in _MODELS):
        return {}
    return part["models"]


def write_table(store: Store, kind: str, data: bytes) -> dict[str, str]:
    """Write a table of an evaluation; returns what `evaluation.json` says of the file, under its kind.

    The name has the digest in it, so that the older file stays whole until `evaluation.json` names the new one.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"{_FOLDER}/{_TABLES[kind]}-{sha256[:12]}.parquet"
    store.write(name, data)
    return {"file": name, "sha256": sha256}


def remove_older_tables(store: Store, evaluation: Mapping[str, Any]) -> None:
    """Remove the tables that `evaluation` does not name."""
    named = {evaluation[kind]["file"] for kind in _TABLES if kind in evaluation}
    for name in store.list(_FOLDER):
        if name.endswith(".parquet") and f"{_FOLDER}/{name}" not in named:
            store.remove(f"{_FOLDER}/{name}")


def missing_table(store: Store, evaluation: Mapping[str, Any]) -> str | None:
    """The first table that `evaluation` names and that is not there; older evaluations name fewer."""
    files = (evaluation[kind]["file"] for kind in _TABLES if kind in evaluation)
    return next((file for file in files if not store.exists(file)), None)


def read_table(store: Store, kind: str, evaluation: Mapping[str, Any]) -> bytes | None:
    """A table of `evaluation`; None where an older rskd wrote none.

    Raises MissingOutputError, and CorruptPartError where the file is not what was written.
    """
    if kind not in evaluation:
        return None
    file = evaluation[kind]
    try:
        data = store.read(file["file"])
    except MissingOutputError:
        raise MissingOutputError(f"{store.uri}/{file['file']} is missing: run rskd evaluate") from None
    if hashlib.sha256(data).hexdigest() != file["sha256"]:
        raise CorruptPartError(
            f"{store.uri}/{file['file']} is not what was written (its sha256 does not match): remove it and run "
            "rskd evaluate"
        )
    return data


def read_measured(config: DistillConfig) -> dict[str, Measured]:
    """The teacher and each student as `rskd evaluate` measured them, window by window.

    Raises MissingOutputError where there is no evaluation, or one without values of single windows, and
    CorruptPartError where their file is not what was written.
    """
    store = Store(config.home)
    evaluation = records.read(store, windows_file(config))
    if evaluation is None:
        raise MissingOutputError(f"{config.evaluation_uri} does not exist: run rskd evaluate")
    data = read_table(store, WINDOW_VALUES, evaluation)
    if data is None:
        raise MissingOutputError(
            f"{config.evaluation_uri} has no values of single windows, an older rskd wrote it: remove it and run "
            "rskd evaluate"
        )
    teacher = evaluation["recipe"]["teacher"]
    return {
        name: Measured(
            tokenizer=evaluation["tokenizer"],
            teacher=named_teacher(teacher["fingerprint"], teacher["dtype"]),
            held_out=evaluation["recipe"]["corpus"],
            values=values,
        )
        for name, values in from_parquet(data).items()
    }
