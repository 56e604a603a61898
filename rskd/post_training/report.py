"""Tables 7 and 8 of a post-training, our row beside the paper's: post_training.md, post_training.html, .csv.

start, evaluation, verdicts of judge or rubric ─► figures of each student ─► two tables
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any

from rskd.cache.manifest import newest_manifest
from rskd.config import DistillConfig
from rskd.evaluation import rubric
from rskd.evaluation.downstream import mean_score, score_error
from rskd.evaluation.results import read_results
from rskd.jobs.start import read_start
from rskd.markdown import markdown_table
from rskd.pages.parts import definitions, html_page, section, table
from rskd.post_training.rows import Learner, learner, set_metrics, table_7, table_8
from rskd.provenance import provenance
from rskd.reproduction.beside_paper import Ours, cache_facts, cells, head, table_csv
from rskd.reproduction.statistics import Estimate, Interval
from rskd.reproduction.tables import Table
from rskd.storage import Store

FILE = "post_training"


def write_tables(tuned: DistillConfig, start: DistillConfig, rated: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Write the three files into the folder of `tuned`; the URI of the page, and the tables in Markdown.

    `rated` has the verdict on each set of prompts by model, of `judge_models` or `rate_answers`.
    """
    caches = {name: _cache(start, name) for name in start.cache_samplings}
    students = [_learner(start, name, caches) for name in start.student_specs]
    ours = {name: _ours(tuned, start, name, caches, rated.get(name, {})) for name in start.student_specs}
    tables = [table_7(students)]
    if tuned.generate is not None:
        tables.append(table_8(students, tuned.generate, _rated_by(tuned)))
    facts = _facts(tuned, start)
    store = Store(tuned.home)
    markdown = _markdown(tuned, start, facts, tables, ours)
    store.write(f"{FILE}.csv", table_csv(tables, ours).encode())
    store.write(f"{FILE}.md", markdown.encode())
    store.write(f"{FILE}.html", _page(tuned, start, facts, tables, ours).encode())
    return {"page": f"{tuned.home}/{FILE}.html", "markdown": markdown}


def _rated_by(tuned: DistillConfig) -> str:
    return rubric.NAME if tuned.judge is None else f"judge {tuned.judge.model}"


def _cache(config: DistillConfig, name: str) -> tuple[float | None, float | None]:
    """Unique tokens and bytes of a position; None where the cache is gone."""
    manifest = newest_manifest(Store(config.cache_uri(name)))
    return (None, None) if manifest is None else cache_facts(manifest)


def _learner(start: DistillConfig, name: str, caches: Mapping[str, tuple[float | None, float | None]]) -> Learner:
    spec = start.student_spec(name)
    unique_tokens, _ = caches.get(spec.sampling, (None, None))
    return learner(name, spec, start.cache_samplings.get(spec.sampling), unique_tokens)


def _ours(
    tuned: DistillConfig,
    start: DistillConfig,
    student: str,
    caches: Mapping[str, tuple[float | None, float | None]],
    rated: Mapping[str, Any],
) -> Ours:
    """The figures of one student, in the paper's units."""
    spec = start.student_spec(student)
    cache = caches[spec.sampling] if spec.objective.kind == "sparse_kd" else (None, None)
    before = read_start(tuned, start).get(student)
    after = (read_results(tuned) or {"models": {}})["models"].get(student)
    metrics = _before(before) | _after(after) | _rated(tuned, rated)
    return Ours(student, 1, 0, metrics, None, *cache)


def _before(model: Mapping[str, Any] | None) -> dict[str, Estimate | Interval]:
    if model is None:
        return {}
    errors = model["standard_error"]
    return {
        "lm_loss": Estimate(model["lm_loss"], errors["lm_loss"]),
        "ece": Estimate(100 * model["ece"], None),
        "acceptance": _percent(model["acceptance"], errors["acceptance"]),
        **_score("score", model),
    }


def _after(model: Mapping[str, Any] | None) -> dict[str, Estimate | Interval]:
    if model is None:
        return {}
    loss = Estimate(model["lm_loss"], model["standard_error"]["lm_loss"])
    return {"sft_lm_loss": loss, **_score("sft_score", model)}


def _score(name: str, model: Mapping[str, Any]) -> dict[str, Estimate | Interval]:
    """Mean over tasks, with its error over their examples; nothing without tasks."""
    tasks = model.get("tasks", {})
    score = mean_score(tasks)
    return {} if score is None else {name: _percent(score, score_error(tasks))}


def _percent(value: float, error: float | None) -> Estimate:
    return Estimate(100 * value, None if error is None else 100 * error)


def _rated(tuned: DistillConfig, rated: Mapping[str, Any]) -> dict[str, Estimate | Interval]:
    """The score of each set, with its interval, and their mean; nothing for a set without a score."""
    if tuned.generate is None:
        return {}
    verdicts = {metric: rated[name] for name, metric in set_metrics(tuned.generate).items() if name in rated}
    scored = {metric: verdict for metric, verdict in verdicts.items() if verdict["score"] is not None}
    found: dict[str, Estimate | Interval] = {
        metric: Estimate(verdict["score"], None)
        if verdict["low"] is None
        else Interval(verdict["score"], verdict["low"], verdict["high"])
        for metric, verdict in scored.items()
    }
    if scored and len(scored) == len(tuned.generate.prompt_sets):
        found["judged"] = Estimate(fmean(figure.mean for figure in found.values()), None)
    return found


def _title(tuned: DistillConfig, start: DistillConfig) -> str:
    return f"The students of {start.name}, tuned by {tuned.name}"


def _facts(tuned: DistillConfig, start: DistillConfig) -> dict[str, str]:
    """What the figures depend on."""
    spec = next(iter(tuned.student_specs.values()))
    source = tuned.corpus.source
    facts = {
        "students": f"{start.storage.root.rstrip('/')}/{start.name}",
        "tuned on": " ".join(filter(None, (tuned.corpus.kind, source.kind, source.uri))),
        "objective": spec.objective.kind,
        "steps": f"{spec.train.steps:,}, each {spec.train.global_batch:,} windows of {tuned.corpus.seq_len:,} tokens",
        "tasks": ", ".join(tuned.evaluate.tasks) or "none",
    }
    if tuned.generate is not None:
        facts["answers"] = f"{tuned.generate.generations} to each prompt, temperature {tuned.generate.temperature:g}"
        facts["rated by"] = _rated_by(tuned)
    return facts | provenance()


_NOTES = {
    "table7": "LM loss, ECE and acceptance are those before tuning, on held-out windows of what the students were "
    "distilled on, ± standard error over windows; LM loss after SFT is that on held-out windows of the tuning. Scores "
    "are means over tasks, zero-shot, ± standard error over examples. Each row is one student: how much another seed "
    "would change is not in these errors.",
    "table8": "The total of the answers' points over that of the references', with a 95% bootstrap interval over "
    "prompts in brackets. The paper's figures are of its own sets, students and judge.",
}
_RUBRIC_NOTE = (
    " ROUGE-L rubric, no judge: a reference has 10 points, an answer 1 + 9 · F1 of the words that it shares with it in "
    "order (rskd.evaluation.rubric). It says how like the references answers are, not how good, and does not compare "
    "with the paper's figures."
)


def _note(of: Table, tuned: DistillConfig) -> str:
    return _NOTES[of.name] + (_RUBRIC_NOTE if of.name == "table8" and tuned.judge is None else "")


def _about(of: Table) -> str:
    return f"The paper's setting: {of.setting}."


def _markdown(
    tuned: DistillConfig,
    start: DistillConfig,
    facts: Mapping[str, str],
    tables: Sequence[Table],
    ours: Mapping[str, Ours],
) -> str:
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    parts = [f"# {_title(tuned, start)}\n\n{listed}\n"]
    for each in tables:
        rows = [cells(row, each, ours) for row in each.rows]
        parts.append(
            f"## {each.title}\n\n{_about(each)}\n\n{markdown_table(head(each), rows)}\n\n{_note(each, tuned)}\n"
        )
    return "\n".join(parts)


def _page(
    tuned: DistillConfig,
    start: DistillConfig,
    facts: Mapping[str, str],
    tables: Sequence[Table],
    ours: Mapping[str, Ours],
) -> str:
    sections = [section("Setting", definitions(dict(facts)))]
    for each in tables:
        rows = [[escape(cell) for cell in cells(row, each, ours)] for row in each.rows]
        shown = table([escape(column) for column in head(each)], rows, num_text=1)
        sections.append(section(escape(each.title), shown, escape(f"{_about(each)} {_note(each, tuned)}")))
    return html_page("post-training", _title(tuned, start), sections)
