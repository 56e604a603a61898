"""Evaluate the students and their teacher: parts of an evaluation ─► a file and metrics of each, in MLflow.

    held-out windows, speculative decoding, every downstream task ─► those that changed ─► a Ray task each
                                                                      windows: evaluate.workers tasks ─► joined in order

A task (`rskd.jobs.evaluate_worker`) says how far it is. A part is skipped if its file is there and everything that it
depends on is unchanged: data, teacher, students, settings. A downstream task that fails stops none of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rskd import records, tracking
from rskd.cache.manifest import newest_manifest
from rskd.config import DistillConfig, PlannedEvaluate, RayConfig
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.costs import recorded_costs
from rskd.errors import ConfigError, MissingOutputError, explained_by
from rskd.evaluation import passages, results, window_values
from rskd.evaluation.downstream import find_tasks, mean_score
from rskd.evaluation.language_modeling import measure, pct_ce_to_fullkd
from rskd.evaluation.window_values import METRICS
from rskd.jobs.at_work import at_work
from rskd.jobs.cluster.stage import on_cluster
from rskd.jobs.evaluate_worker import (
    EvaluationRun,
    Findings,
    Job,
    Work,
    compare_models,
    evaluate_speculation,
    evaluate_task,
    evaluate_windows,
    joined,
)
from rskd.jobs.one_at_a_time import one_at_a_time
from rskd.jobs.plan import Trial, plan_stage, resources
from rskd.jobs.ray_session import ensure_ray
from rskd.lineage.evaluation import (
    Part,
    Records,
    check_part,
    evaluated_students,
    evaluation_parts,
    num_held_out,
    open_held_out,
)
from rskd.lineage.inputs import Inputs, inputs_first
from rskd.models.digests import RESULT_FILE
from rskd.models.memory import released_after
from rskd.out_of_memory import out_of_memory_explained
from rskd.pages.figures import reliability_diagrams
from rskd.plan import Plan, plan_evaluation, planned_evaluate
from rskd.progress import progress_bar
from rskd.storage import Store
from rskd.student.checkpoint import student_digest

GAP_COVERED = "pct_ce_to_fullkd"
_TABLES = {results.WINDOW_VALUES: window_values.to_parquet, results.PASSAGES: passages.to_parquet}


@on_cluster
@one_at_a_time
def evaluate_students(config: DistillConfig) -> dict[str, Any]:
    """Evaluate every student of `config`, and the teacher, on the held-out windows; and what `config.evaluate` adds.

    Returns {"teacher": M, <student>: M, ..., "skipped": bool} with M = {lm_loss, ece, top1_agreement, acceptance,
    kl_to_teacher}, and pct_ce_to_fullkd where one student learned by cross-entropy and one by full KD; `speculative`
    (`Speculation.to_dict`), `tasks` {task: {metric: value}} and `zero_shot_score` where they were asked for. Standard
    errors and the bins of the reliability diagrams are in the files (`rskd.evaluation.results`).

    Raises ConfigError for a wrong config or path, MissingOutputError for a corpus or student that is not there; and
    ConfigError for downstream tasks whose data cannot be had, when all else is done and written.
    """
    store = Store(config.home)
    Store(config.storage.root).check_writable()
    inputs = Inputs(config)
    _ = inputs.corpus_head  # the teacher and its tokenizer, before the outputs
    if config.evaluate.tasks:
        find_tasks(config.evaluate.tasks, config.evaluate.task_path)
    with inputs_first(config):
        corpus, students = open_held_out(inputs), evaluated_students(inputs)
        parts = evaluation_parts(inputs, corpus, students)
    made = make_parts(inputs, corpus, students, parts, store, config, "evaluate")
    if made:
        tracking.log_headline(config, student_figures(config), recorded_costs(Store(config.home)))
    evaluation = results.read_results(config)
    assert evaluation is not None  # it was there, or has just been written
    return {name: summary(model) for name, model in evaluation["models"].items()} | {"skipped": not made}


def make_parts(
    inputs: Inputs,
    corpus: PackedCorpus,
    students: Records,
    parts: Sequence[Part],
    store: Store,
    working: DistillConfig,
    stage: str,
) -> bool:
    """Make those parts of the evaluation of `students` that `store` lacks, as work of `stage` of `working`.

    Returns whether any was missing. Raises ConfigError for downstream tasks that failed, when all else is done.
    """
    pending = [part for part in parts if not _is_made(store, part)]
    if not pending:
        return False
    config = inputs.config
    plan = plan_for(config, corpus, inputs.teacher_dir, Store(working.home))
    makes = {part.file: records.digest(part.recipe) for part in parts}
    failures: list[ConfigError] = []
    with at_work(working, stage, reserves=plan.reserved, makes=makes, planned=plan.params) as work:
        manifest = {"digest": corpus.manifest.digest, "totals": corpus.manifest.totals}
        work.run.dataset(corpus.uri, manifest, name="held-out windows", context="evaluation")
        settings = planned_evaluate(config.evaluate, plan)
        run = evaluation_run(config, corpus, inputs.teacher_dir, config.student_specs, settings)
        for part in pending:
            try:
                models = _find(config.ray, part, run)
            except Exception as error:
                failures.append(_as_task_failure(part, error))
                continue
            if part is parts[0]:
                models = _with_gap_covered(config, models)
                work.run.figure(reliability_diagrams(models), "reliability")
                work.add(tokens=part.units * corpus.seq_len)
            work.add(bytes_written=_write(store, part, models))
            _track(work.run, part, models, students, corpus)
        if failures:
            raise ConfigError("; ".join(str(failure) for failure in failures))
    return True


def plan_for(
    config: DistillConfig, corpus: PackedCorpus, teacher_dir: str, home: Store, student: str | None = None
) -> Plan:
    """What an evaluation of all students, or of one, runs on, kept in `home`; Ray runs from here on.

    Its batch is the largest whose windows pass through all models.
    """
    students = config.student_specs if student is None else {student: config.student_spec(student)}
    of = {
        "teacher": config.teacher.model_dump(mode="json", include={"model", "revision", "dtype", "attention"}),
        "students": {name: spec.student.model_dump(mode="json") for name, spec in students.items()},
        "corpus": config.corpus.model_dump(mode="json", include={"seq_len", "isolate_documents"}),
    }

    def trial(plan: Plan) -> partial[Trial]:
        settings = planned_evaluate(config.evaluate, replace(plan, batch=1))
        return partial(_trial, evaluation_run(config, corpus, teacher_dir, students, settings))

    ensure_ray(config.ray)
    resolve = partial(plan_evaluation, config, student or "")
    return plan_stage(resolve, resources(config.ray), config.ray, home, of=of, trial=trial)


def _trial(run: EvaluationRun) -> Trial:
    """Each model on so many windows at once, the first ones."""
    num_rows, values = PackedCorpus.open(run.corpus_uri).num_rows, partial(measure, num_bins=run.settings.num_bins)

    def compare(size: int) -> None:
        rows = np.arange(size) % num_rows
        for _ in compare_models(run, [Job(results.WINDOW_VALUES, rows, None, values)]):
            pass

    return compare


def _track(run: tracking.Run, part: Part, models: Findings, students: Records, corpus: PackedCorpus) -> None:
    """Log what a part found, of a student also on its model."""
    for model, metrics in models.items():
        logged = _logged(part, metrics)
        run.metrics({f"{model}/{metric}": value for metric, value in logged.items()})
        if model in students:
            data = {"dataset": "held-out windows", "dataset_digest": corpus.manifest.digest}
            run.model_metrics(student_digest(students[model]), logged, **data)


def student_figures(
    config: DistillConfig, judged: Mapping[str, Mapping[str, float]] | None = None
) -> dict[str, dict[str, float]]:
    """What people compare students by: METRICS, tokens_per_s, and bytes_per_token of their cache.

    Of the students as they are now: those that were evaluated, and those of `judged`, whose METRICS these are.
    """
    evaluation = results.read_results(config) or {"models": {}, "recipe": {"students": {}}}
    bytes_per_token = {
        name: manifest.totals["bytes"] / manifest.totals["tokens"]
        for name in config.cache_samplings
        if (manifest := newest_manifest(Store(config.cache_uri(name)))) is not None
    }
    figures = {}
    for student, spec in config.student_specs.items():
        record = records.read(Store(config.student_uri(student)), RESULT_FILE)
        if record is None:
            continue
        measured = (judged or {}).get(student)
        if measured is None and evaluation["recipe"]["students"].get(student) == records.digest(record):
            measured = evaluation["models"][student]
        if measured is None:
            continue
        figures[student] = {metric: measured[metric] for metric in METRICS}
        figures[student]["tokens_per_s"] = record["summary"]["tokens_per_s"]
        if spec.objective.kind == "sparse_kd" and spec.sampling in bytes_per_token:
            figures[student]["bytes_per_token"] = bytes_per_token[spec.sampling]
    return figures


def _is_made(store: Store, part: Part) -> bool:
    try:
        return check_part(store, part) is None
    except MissingOutputError:
        return False


def _find(ray: RayConfig, part: Part, run: EvaluationRun) -> Findings:
    """What a part finds of each model."""
    if part.kind == "windows":
        return measure_windows(ray, run, title=part.kind)
    work = partial(evaluate_task, part.recipe["task"]) if part.kind == "task" else evaluate_speculation
    [found] = _follow(ray, work, [run], title=part.recipe.get("task", part.kind), units=part.units)
    return found


def measure_windows(ray: RayConfig, run: EvaluationRun, *, title: str) -> Findings:
    """The teacher and the students of `run` on its windows, by the workers that `run.settings` says.

    The bar counts the windows of each model. The findings of a model have METRICS, and its values of single windows.
    """
    units = len(run.windows) * (1 + len(run.students))
    return joined(_follow(ray, evaluate_windows, run.shared_out(run.settings.workers), title=title, units=units))


def evaluation_run(
    config: DistillConfig,
    corpus: PackedCorpus,
    teacher_dir: str,
    students: Iterable[str],
    settings: PlannedEvaluate,
) -> EvaluationRun:
    """What a worker has to know to evaluate these students of `config` on the held-out windows of `corpus`."""
    task_path, num_windows = settings.task_path, num_held_out(config, corpus)
    return EvaluationRun(
        corpus_uri=Store(corpus.uri).absolute_uri,
        num_windows=num_windows,
        windows=range(num_windows),
        tokenizer=config.corpus.tokenizer or teacher_dir,
        teacher=config.teacher,
        teacher_dir=teacher_dir,
        students={
            student: (Store(config.student_uri(student)).absolute_uri, config.student_specs[student].student.attention)
            for student in students
        },
        settings=settings.model_copy(update={"task_path": task_path and str(Path(task_path).resolve())}),
    )


def _follow(ray: RayConfig, work: Work, runs: Sequence[EvaluationRun], *, title: str, units: int) -> list[Findings]:
    """Run work of an evaluation to its end, a worker a run, with a bar of so many units; the findings of each."""
    findings: dict[int, Findings] = {}
    remedy = f"lower evaluate.batch_windows (now {runs[0].settings.batch_windows})"
    with out_of_memory_explained(remedy), progress_bar(f"evaluate {title}", units) as advance:
        for worker, update in _updates(ray, work, runs):
            if isinstance(update, int):
                advance(update)
            else:
                findings[worker] = update
    return [findings[worker] for worker in range(len(runs))]


def _updates(ray: RayConfig, work: Work, runs: Sequence[EvaluationRun]) -> Iterator[tuple[int, int | Findings]]:
    """What each run yields, with its index."""
    if not ray.enabled:
        return ((worker, update) for worker, run in enumerate(runs) for update in released_after(work(run)))
    from rskd.jobs import on_ray

    return on_ray.follow_each(work, [(run,) for run in runs], gpus=runs[0].settings.gpus)


def _write(store: Store, part: Part, models: Findings) -> int:
    """Write the file of a part; what is known of single windows and tokens goes into tables, which this one names.

    Returns the bytes of all.
    """
    kept = {name: {key: value for key, value in found.items() if key not in _TABLES} for name, found in models.items()}
    content = {"recipe": part.recipe, "models": kept} | part.facts
    for kind, to_parquet in _TABLES.items():
        values = {name: found[kind] for name, found in models.items() if kind in found}
        if values:
            content[kind] = results.write_table(store, kind, to_parquet(values))
    records.write(store, part.file, content)
    tables = [content[kind]["file"] for kind in _TABLES if kind in content]
    if tables:
        results.remove_older_tables(store, content)
    return sum(map(store.size, (part.file, *tables)))


def _as_task_failure(part: Part, error: Exception) -> ConfigError:
    """What is wrong with a downstream task; raises `error` again where it is anything else."""
    known = explained_by(error)
    if part.kind == "task" and isinstance(known, ConfigError):
        return known
    raise error


def _with_gap_covered(config: DistillConfig, models: Findings) -> Findings:
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


def summary(model: dict[str, Any]) -> dict[str, Any]:
    """What is reported of a model: METRICS, and the values without their errors of what else was found."""
    reported = {metric: model[metric] for metric in (*METRICS, GAP_COVERED, "speculative") if metric in model}
    if "tasks" in model:
        reported["tasks"] = {task: _values(metrics) for task, metrics in model["tasks"].items()}
        reported["zero_shot_score"] = mean_score(model["tasks"])
    return reported


def _logged(part: Part, found: dict[str, Any]) -> dict[str, float]:
    """The numbers of one model and part under the names that they have in MLflow."""
    if part.kind == "task":
        return {f"{part.recipe['task']}/{metric}": value for metric, value in _values(found).items()}
    if part.kind == "speculation":
        return {f"speculative/{metric}": value for metric, value in found.items()}
    return summary(found)


def _values(metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    return {metric: found["value"] for metric, found in metrics.items()}
