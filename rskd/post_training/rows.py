"""Our students in the rows of the paper's Tables 7 and 8: a student belongs to the row that it learned as.

StudentSpec, sampling, unique tokens of its cache ─► papers_method ─► a row beside the paper's, or one of its own
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rskd.config import GenerateConfig, SamplingConfig, StudentSpec
from rskd.pages.wording import objective_in_words
from rskd.reproduction.methods import CACHES, METHODS, Cache
from rskd.reproduction.tables import METRICS, SETS, TABLE_7, TABLE_8, Row, Table

_NEAR = 1.0  # unique tokens from those that the paper names


@dataclass(frozen=True)
class Learner:
    """A student, what it learned from, and the row of the paper that it belongs to; None for none."""

    name: str
    targets: str  # in words
    method: str | None


def learner(name: str, spec: StudentSpec, sampling: SamplingConfig | None, unique_tokens: float | None) -> Learner:
    """The student `name`; `sampling` is that of its cache, `unique_tokens` their mean, None where it is not known."""
    if spec.objective.kind != "sparse_kd":
        sampling = None
    cached = None if sampling is None else sampling.model_dump(mode="json")
    targets = ", ".join(objective_in_words(spec.objective.model_dump(mode="json"), cached))
    return Learner(name, targets, papers_method(spec, sampling, unique_tokens))


def papers_method(spec: StudentSpec, sampling: SamplingConfig | None, unique_tokens: float | None) -> str | None:
    """The method of TABLE_7's rows that a student learned by; None for another.

    Random and systematic sampling, both unbiased, are alike where a position has 11 to 13 unique tokens.
    """
    if spec.train.allow_misaligned:
        return None
    objective = spec.objective.model_dump(mode="json", exclude_defaults=True, exclude={"impl"})
    for row in TABLE_7.rows:
        method = METHODS[row.method]
        if objective == method.objective and (
            method.cache is None or _is_like(CACHES[method.cache], sampling, unique_tokens)
        ):
            return row.method
    return None


def _is_like(cache: Cache, sampling: SamplingConfig | None, unique_tokens: float | None) -> bool:
    if sampling is None:
        return False
    if cache.unique_tokens is None:
        return all(getattr(sampling, key) == value for key, value in cache.sampling.items())
    unbiased = sampling.method in ("random", "systematic") and sampling.temperature == 1
    return unbiased and unique_tokens is not None and abs(unique_tokens - cache.unique_tokens) <= _NEAR


def table_7(students: Sequence[Learner]) -> Table:
    """The paper's Table 7 with a row for each of our students, and their loss after tuning."""
    shown = {*TABLE_7.rows[0].paper, "sft_lm_loss"}
    columns = {metric: label for metric, label in METRICS.items() if metric in shown}
    return replace(TABLE_7, title="Table 7: before and after tuning", rows=_rows(TABLE_7, students), ours=columns)


def table_8(students: Sequence[Learner], generate: GenerateConfig, rated_by: str) -> Table:
    """The paper's Table 8 with a row for each of our students, and a column for each of our sets of prompts."""
    columns = {metric: SETS.get(metric, f"{name}, %") for name, metric in set_metrics(generate).items()}
    if len(columns) > 1:
        columns["judged"] = SETS["judged"]
    title = f"Table 8: answers of tuned students, rated ({rated_by})"
    marked = {metric: f"{label} ({rated_by})" for metric, label in columns.items()}
    return replace(TABLE_8, title=title, rows=_rows(TABLE_8, students), ours=marked)


def set_metrics(generate: GenerateConfig) -> dict[str, str]:
    """The metric that stands for each set of prompts: the paper's for the first of its kind, else one of its own."""
    found: dict[str, str] = {}
    for name, prompts in generate.prompt_sets.items():
        is_papers = prompts.kind != "own" and prompts.kind not in found.values()
        found[name] = prompts.kind if is_papers else f"set {name}"
    return found


def _rows(of: Table, students: Sequence[Learner]) -> tuple[Row, ...]:
    """The paper's rows, each once for every student of its method; then the other students."""
    rows = []
    for row in of.rows:
        ours = [student for student in students if student.method == row.method]
        named = [replace(row, label=f"{row.label}: {_named(student)}", method=student.name) for student in ours]
        rows += named or [row]
    methods = {row.method for row in of.rows}
    return (*rows, *(Row(_named(student), student.name) for student in students if student.method not in methods))


def _named(student: Learner) -> str:
    return f"{student.name} ({student.targets})"
