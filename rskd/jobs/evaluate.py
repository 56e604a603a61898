"""Evaluate the students and their teacher: held-out windows ─► one pass of all models ─► evaluation.json, MLflow.

The models run in one Ray task, which says after each batch how far it is. The result is skipped if it is there and
everything that it depends on is unchanged: held-out windows, teacher, students, settings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray
import torch

from rskd import records, tracking
from rskd.causal_lm import document_positions, hidden_states, output_head
from rskd.config import DistillConfig, EvaluateConfig, TeacherConfig
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.errors import CacheMismatchError, ConfigError, MissingOutputError
from rskd.evaluation.figures import reliability_diagrams
from rskd.evaluation.language_modeling import METRICS, Comparison, LanguageModel, pct_ce_to_fullkd
from rskd.jobs.ray_session import ensure_ray
from rskd.progress import progress_bar
from rskd.storage import Store
from rskd.student.checkpoint import RESULT_FILE
from rskd.student.model import load_model
from rskd.teacher.model_files import resolve_model, weights_fingerprint
from rskd.teacher.transformers_teacher import TransformersTeacher

GAP_COVERED = "pct_ce_to_fullkd"


@dataclass(frozen=True)
class EvaluationRun:
    """All that the task has to know; URIs and paths are absolute, since a worker has a working directory of its own."""

    corpus_uri: str
    num_windows: int
    teacher: TeacherConfig
    teacher_dir: str
    students: dict[str, tuple[str, str]]  # URI and attention implementation
    settings: EvaluateConfig


def evaluate_students(config: DistillConfig) -> dict[str, Any]:
    """Evaluate every student of `config`, and the teacher, on the held-out windows.

    Returns {"teacher": M, <student>: M, ..., "skipped": bool} with M = {lm_loss, ece, top1_agreement, acceptance,
    kl_to_teacher}, and pct_ce_to_fullkd where one student learned by cross-entropy and one by full KD. Standard errors
    and the bins of the reliability diagrams are in `config.evaluation_uri`.

    Raises ConfigError for a wrong config or path, MissingOutputError for a corpus or student that is not there.
    """
    Store(config.storage.root).check_writable()
    teacher_dir = resolve_model(config.teacher.model, revision=config.teacher.revision, teachers=config.teachers_uri)
    corpus = _open_corpus(config)
    num_windows = min(corpus.num_rows, config.evaluate.max_windows or corpus.num_rows)
    recipe = {
        "corpus": corpus.manifest.fingerprint,
        "num_windows": num_windows,
        "num_bins": config.evaluate.num_bins,
        "teacher": {"fingerprint": weights_fingerprint(teacher_dir), "dtype": config.teacher.dtype},
        "students": {student: _student_digest(config, student) for student in config.student_specs},
    }
    home, _, name = config.evaluation_uri.rpartition("/")
    done = records.read(Store(home), name)
    if done is not None and done["recipe"] == recipe:
        return _scalars(done["models"]) | {"skipped": True}

    run = EvaluationRun(
        corpus_uri=Store(corpus.uri).absolute_uri,
        num_windows=num_windows,
        teacher=config.teacher,
        teacher_dir=teacher_dir,
        students={
            student: (Store(config.student_uri(student)).absolute_uri, spec.student.attention)
            for student, spec in config.student_specs.items()
        },
        settings=config.evaluate,
    )
    ensure_ray(config.ray)
    _check_gpus(config)
    with tracking.stage(config, "evaluate") as tracked:
        manifest = {"digest": corpus.manifest.digest, "totals": corpus.manifest.totals}
        tracked.dataset(corpus.uri, manifest, name="held-out windows", context="evaluation")
        models = _with_gap_covered(config, _run(run))
        for model, metrics in _scalars(models).items():
            tracked.metrics({f"{model}/{metric}": value for metric, value in metrics.items()})
        tracked.figure(reliability_diagrams(models), "reliability")
    tokens = num_windows * corpus.seq_len
    records.write(Store(home), name, {"recipe": recipe, "windows": num_windows, "tokens": tokens, "models": models})
    return _scalars(models) | {"skipped": False}


def _open_corpus(config: DistillConfig) -> PackedCorpus:
    """The held-out windows, made with the settings of `config`."""
    corpus = PackedCorpus.open(config.corpus_uri("eval"))
    for setting in ("seq_len", "seed", "isolate_documents"):
        found, wanted = getattr(corpus.manifest, setting), getattr(config.corpus, setting)
        if found != wanted:
            raise CacheMismatchError(
                f"{corpus.uri} was packed with corpus.{setting}={found}, not {wanted}: undo the change, or choose "
                "another name"
            )
    if corpus.num_rows == 0:
        raise ConfigError(f"{corpus.uri} has no windows: set corpus.eval_windows and choose another name")
    return corpus


def _student_digest(config: DistillConfig, student: str) -> str:
    uri = config.student_uri(student)
    trained = records.read(Store(uri), RESULT_FILE)
    if trained is None:
        raise MissingOutputError(f"student {uri} does not exist: run rskd train --student {student}")
    return records.digest(trained)


def _check_gpus(config: DistillConfig) -> None:
    """One machine never gets more GPUs than it has (a cluster may): the task would wait for ever."""
    gpus = ray.cluster_resources().get("GPU", 0)
    if config.ray.address is None and config.evaluate.gpus > gpus:
        raise ConfigError(f"evaluate.gpus={config.evaluate.gpus:g} but this machine has {gpus:g}: lower evaluate.gpus")


def _run(run: EvaluationRun) -> dict[str, dict[str, Any]]:
    """Follow the task to its end; the metrics of each model."""
    task: Any = _evaluate.options(num_cpus=1, num_gpus=run.settings.gpus)
    models: dict[str, dict[str, Any]] = {}
    with progress_bar("evaluate windows", run.num_windows) as advance:
        for reference in task.remote(run):
            update: Any = ray.get(reference)
            if isinstance(update, int):
                advance(update)
            else:
                models = update
    return models


@ray.remote(num_returns="streaming")
def _evaluate(run: EvaluationRun) -> Iterator[int | dict[str, dict[str, Any]]]:
    """Yields the windows of each batch when it is done, and in the end the metrics of all models."""
    torch.set_num_threads(os.cpu_count() or 1)
    device = torch.device("cuda" if run.settings.gpus else "cpu")
    corpus = PackedCorpus.open(run.corpus_uri)
    manifest = corpus.manifest
    end_of_text_id = manifest.tokenizer["end_of_text_id"] if manifest.isolate_documents else None
    teacher = TransformersTeacher.load(run.teacher, model_dir=run.teacher_dir, device=device)
    comparison = Comparison(
        LanguageModel(partial(teacher.hidden, end_of_text_id=end_of_text_id), teacher.head),
        {
            name: _load_student(uri, attention, device, end_of_text_id)
            for name, (uri, attention) in run.students.items()
        },
        vocab_size=manifest.tokenizer["vocab_size"],
        num_bins=run.settings.num_bins,
    )
    for start in range(0, run.num_windows, run.settings.batch_windows):
        rows = np.arange(start, min(start + run.settings.batch_windows, run.num_windows))
        comparison.add(torch.from_numpy(corpus.read_rows(rows).input_ids).long().to(device))
        yield len(rows)
    yield comparison.results()


def _load_student(uri: str, attention: str, device: torch.device, end_of_text_id: int | None) -> LanguageModel:
    with Store(uri).local_copy() as directory:
        student = load_model(directory, attention).eval()
    torch.nn.Module.to(student, device)

    def hidden(input_ids: torch.Tensor) -> torch.Tensor:
        positions = None if end_of_text_id is None else document_positions(input_ids, end_of_text_id)
        return hidden_states(student, input_ids, positions)

    return LanguageModel(hidden, output_head(student))


def _with_gap_covered(config: DistillConfig, models: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Add pct_ce_to_fullkd to each student where exactly one student marks either end."""
    kinds = {student: spec.objective.kind for student, spec in config.student_specs.items()}
    ends = [[models[student]["lm_loss"] for student in kinds if kinds[student] == kind] for kind in ("ce", "full_kd")]
    if [len(end) for end in ends] != [1, 1] or ends[0] == ends[1]:
        return models
    [ce], [full_kd] = ends
    covered = {
        student: models[student] | {GAP_COVERED: pct_ce_to_fullkd(models[student]["lm_loss"], ce=ce, full_kd=full_kd)}
        for student in kinds
    }
    return models | covered


def _scalars(models: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    wanted = (*METRICS, GAP_COVERED)
    return {name: {metric: model[metric] for metric in wanted if metric in model} for name, model in models.items()}
