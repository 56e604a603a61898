"""The parts of an evaluation: made from the models, the held-out windows, and the settings of section evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rskd import records
from rskd.config import DistillConfig, EvaluateConfig
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.difference import Difference, first_difference
from rskd.errors import ConfigError, MissingOutputError
from rskd.evaluation import results
from rskd.evaluation.ratings import read_judgements
from rskd.lineage.corpus import open_corpus
from rskd.lineage.inputs import Inputs
from rskd.lineage.student import check_student, settings_digest
from rskd.models.digests import sha256_of
from rskd.storage import Store

Records = Mapping[str, dict[str, Any]]  # by student
_OPTIONAL = ("generate", "judge")  # sections that reports of before had not
_PRECISION = {"dtype": EvaluateConfig().dtype}  # of a recipe that says nothing
_TASKS = ("*.yaml", "*.yml", "*.py")


@dataclass(frozen=True)
class Part:
    """One part of an evaluation, a file of its own."""

    kind: Literal["windows", "speculation", "task"]
    file: str  # its name below the distillation's folder
    recipe: dict[str, Any]  # all that its findings depend on
    units: int  # windows, texts or models that it goes through
    facts: dict[str, Any] = field(default_factory=dict)  # what else its file holds


def open_held_out(inputs: Inputs) -> PackedCorpus:
    """The held-out windows. Raises what `open_corpus` does; ConfigError where there is none."""
    corpus = open_corpus(inputs, "eval")
    if corpus.num_rows == 0:
        raise ConfigError(f"{corpus.uri} has no windows: set corpus.eval_windows and choose another name")
    return corpus


def evaluated_students(inputs: Inputs) -> Records:
    """The record of each student that an evaluation takes.

    The first takes the students as they were trained; a later one refuses those that were not trained as the
    configuration says, if it has changed since then. Raises what `check_student` does.
    """
    config = inputs.config
    configured = _configured(inputs)
    made = records.read(Store(config.home), results.windows_file(config))
    before = made.get("configured", dict.fromkeys(configured)) if made else {}
    return {
        student: check_student(inputs, student, configured=before.get(student, digest))
        for student, digest in configured.items()
    }


def evaluation_parts(inputs: Inputs, corpus: PackedCorpus, students: Records) -> list[Part]:
    """All parts that the configuration asks for, the windows of `corpus` first."""
    config = inputs.config
    settings = config.evaluate
    models = {
        "teacher": {"fingerprint": inputs.teacher_fingerprints[0], "dtype": config.teacher.dtype},
        "students": {student: records.digest(record) for student, record in students.items()},
    }
    models |= precision(settings)
    read = models | {"corpus": corpus.manifest.fingerprint}
    num_windows = num_held_out(config, corpus)
    recipe = read | {"num_windows": num_windows, "num_bins": settings.num_bins}
    facts = {
        "windows": num_windows,
        "tokens": num_windows * corpus.seq_len,
        "tokenizer": corpus.manifest.tokenizer["fingerprint"],
        "configured": _configured(inputs),
    }
    parts = [Part("windows", results.windows_file(config), recipe, num_windows, facts)]
    if settings.speculative is not None:
        recipe = read | {"settings": settings.speculative.model_dump()}
        texts = min(settings.speculative.windows, corpus.num_rows) * len(config.student_specs)
        parts.append(Part("speculation", results.SPECULATIVE, recipe, texts))
    for task in settings.tasks:
        recipe = models | {"task": task, "limit": settings.task_limit, **_task_files(settings.task_path)}
        parts.append(Part("task", results.task_file(task), recipe, 1 + len(config.student_specs)))
    return parts


def precision(settings: EvaluateConfig) -> dict[str, str]:
    """What a recipe says of the students' precision; nothing of the default, as before it could be chosen."""
    return {} if settings.dtype == _PRECISION["dtype"] else {"dtype": settings.dtype}


def _configured(inputs: Inputs) -> dict[str, str]:
    return {student: settings_digest(inputs, student) for student in inputs.config.student_specs}


def num_held_out(config: DistillConfig, corpus: PackedCorpus) -> int:
    """Windows of the held-out split that are evaluated on."""
    return min(corpus.num_rows, config.evaluate.max_windows or corpus.num_rows)


def _task_files(task_path: str | None) -> dict[str, Any]:
    """The folder of own tasks: its name, and digests of what describes them; of their data only the names are known."""
    if task_path is None:
        return {"task_path": None}
    folder = Path(task_path).expanduser()
    files = {str(file.relative_to(folder)): sha256_of(file) for kind in _TASKS for file in sorted(folder.rglob(kind))}
    return {"task_path": task_path, "task_files": files}


def check_part(store: Store, part: Part) -> Difference | None:
    """What is not as it was when the file of a part was made; None where it would come out the same.

    Raises MissingOutputError where there is no file.
    """
    made = records.read(store, part.file)
    if made is None:
        raise MissingOutputError(f"{store.uri}/{part.file} does not exist: run rskd evaluate")
    missing = results.missing_table(store, made)
    if missing is not None:
        raise MissingOutputError(f"{store.uri}/{missing}, which {part.file} names, is missing: run rskd evaluate")
    return first_difference(_PRECISION | made["recipe"], _PRECISION | part.recipe)


def report_digest(config: DistillConfig) -> str:
    """What a report was made from: the configuration, but for its prices, the evaluation, and rated answers."""
    found = {"evaluation": results.read_results(config)}
    if config.generate is not None:
        answers = Store(f"{config.home}/answers")
        found["judged"] = {
            "answers": sorted(answers.sizes(recursive=True)),
            "verdicts": read_judgements(Store(config.home)),
        }
    settings = config.model_dump(mode="json", exclude={"costs"})
    used = {name: section for name, section in settings.items() if section is not None or name not in _OPTIONAL}
    return records.digest({"config": used} | found)
