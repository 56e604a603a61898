"""The report of a distillation: what its stages left behind, once none of it is stale ─► one page."""

from __future__ import annotations

import json
from typing import Any

from rskd import tracking
from rskd.cache.inspection import inspect
from rskd.config import DistillConfig
from rskd.costs import recorded_costs
from rskd.errors import CacheMismatchError
from rskd.evaluation.answers import first_answers
from rskd.evaluation.ratings import read_judgements
from rskd.evaluation.results import read_results
from rskd.jobs.evaluate import student_figures
from rskd.lineage.answers import answered_models, digest_of_answers
from rskd.lineage.evaluation import check_part, evaluation_parts, open_held_out, report_digest
from rskd.lineage.inputs import Inputs, inputs_first
from rskd.lineage.student import check_student
from rskd.pages.judged import SHOWN, Judged
from rskd.pages.report import Findings, render
from rskd.plan import recorded_plans
from rskd.storage import Store
from rskd.student.checkpoint import LOG_FILE


def write_report(config: DistillConfig) -> str:
    """Write the report to `config.report_uri`, and to the distillation's run in MLflow, and return that.

    Raises ConfigError where a path that the config names does not exist; MissingOutputError where the evaluation does
    not, and CacheMismatchError where it, or what it was made from, is not what the configuration says.
    """
    with inputs_first(config):
        page = render(_gather(config))
    home, _, name = config.report_uri.rpartition("/")
    Store(home).write(name, page.encode())
    if config.tracking.enabled:
        tracking.distillation(config).text(name, page)
    return config.report_uri


def summary_page(config: DistillConfig) -> str:
    """The students with their figures and the stages with their costs, in Markdown."""
    return tracking.page(config, student_figures(config), recorded_costs(Store(config.home)))


def _gather(config: DistillConfig) -> Findings:
    """Read what earlier stages left behind."""
    inputs = Inputs(config)
    corpus = open_held_out(inputs)
    students = {student: check_student(inputs, student) for student in config.student_specs}  # the page has settings
    store = Store(config.home)
    for part in evaluation_parts(inputs, corpus, students):
        changed = check_part(store, part)
        if changed is not None:
            raise CacheMismatchError(f"{store.uri}/{part.file} was made with {changed}: run rskd evaluate")
    evaluation = read_results(config)
    assert evaluation is not None  # its parts are there
    used = {spec.sampling for spec in config.student_specs.values() if spec.objective.kind == "sparse_kd"}
    return Findings(
        config=config,
        evaluation=evaluation,
        caches={name: inspect(config.cache_uri(name)) for name in config.cache_samplings if name in used},
        logs={student: _training_log(config.student_uri(student)) for student in config.student_specs},
        costs=recorded_costs(Store(config.home)),
        plans=recorded_plans(store),
        judged=_judged(config),
        made_from=report_digest(config),
    )


def _judged(config: DistillConfig) -> Judged:
    """Answers to the first prompts of each set, of the models that have answered, and the verdicts on them."""
    if config.generate is None:
        return Judged()
    parts, verdicts = answered_models(config), read_judgements(Store(config.home))
    answers = {
        name: {
            model: first_answers(Store(config.answers_uri(model)), of_model[name], SHOWN)
            for model, of_model in parts.items()
        }
        for name in config.generate.prompt_sets
    }
    current = {
        model: verdicts[model]
        for model, of_model in parts.items()
        if model in verdicts and verdicts[model]["answers"] == digest_of_answers(of_model)
    }
    return Judged(answers if parts else {}, current)


def _training_log(student_uri: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Store(student_uri).read(LOG_FILE).splitlines()]
