"""Where post-training starts: the students of a finished distillation, measured before they are tuned.

    students of BEFORE ─┬─► BEFORE's held-out windows ─► <tuned>/start/evaluation.json
                        └─► the tasks of the tuning   ─► <tuned>/start/evaluation/task-<task>.json

The files are those of `rskd.evaluation.results`, in a folder of the tuned distillation: BEFORE's own evaluation, which
may be of more students, stays as it is. A part is skipped if its file is there and all that it depends on is unchanged.
"""

from __future__ import annotations

from typing import Any

from rskd.config import DistillConfig
from rskd.corpus.sources import list_files, located
from rskd.errors import ConfigError
from rskd.evaluation import rubric
from rskd.evaluation.downstream import find_tasks
from rskd.evaluation.judge_client import api_key
from rskd.evaluation.results import read_results
from rskd.jobs.cluster.stage import on_cluster
from rskd.jobs.evaluate import make_parts, summary
from rskd.jobs.one_at_a_time import one_at_a_time
from rskd.lineage.answers import prompt_sets
from rskd.lineage.corpus import packed_so_far
from rskd.lineage.evaluation import evaluated_students, evaluation_parts, open_held_out
from rskd.lineage.inputs import Inputs, inputs_first
from rskd.storage import Store
from rskd.student.architecture import student_architecture
from rskd.student.checkpoint import finished_student

_FOLDER = "start"


def check_start(tuned: DistillConfig, start: DistillConfig) -> None:
    """Whether `tuned` can be made of the students of `start`: everything that can be seen before any work.

    Raises ConfigError for a path, task, prompt, key or tokenizer, and for students that do not fit the windows of the
    tuning; MissingOutputError and CorruptPartError for students that are not trained, or not whole; CacheMismatchError
    for a corpus of the tuning that was packed otherwise.
    """
    for student in start.student_specs:
        finished_student(start.student_uri(student), student)  # before a teacher is looked up, which may take a while
    before, after = Inputs(start), Inputs(tuned)
    with inputs_first(start):
        open_held_out(before)
        evaluated_students(before)
    list_files(located(tuned.corpus.source), chat=tuned.corpus.kind == "chat")
    Store(tuned.storage.root).check_writable()
    head = after.corpus_head
    packed_so_far(after)
    _check_same_ids(before, after)
    fit = {key: head["tokenizer"][key] for key in ("vocab_size", "end_of_text_id")} | {"seq_len": head["seq_len"]}
    for spec in tuned.student_specs.values():
        student_architecture(spec.student, teacher_dir=after.teacher_dir, **fit)
    if tuned.evaluate.tasks:
        find_tasks(tuned.evaluate.tasks, tuned.evaluate.task_path)
    if tuned.generate is not None:
        prompt_sets(tuned)
        if tuned.judge is None:
            rubric.check_installed()
        else:
            api_key(tuned.judge)


def _check_same_ids(before: Inputs, after: Inputs) -> None:
    """ConfigError where a token of text has another id than the students learned; added tokens may have new names."""
    learned, added = before.tokenizer.get_vocab(), after.tokenizer.get_added_tokens_decoder().values()
    names = {token.content for token in added}
    for token, index in after.tokenizer.get_vocab().items():
        if token not in names and learned.get(token) != index:
            raise ConfigError(
                f"the students of {before.config.name} know token {token!r} as {learned.get(token, 'no id')}, the "
                f"tokenizer of {after.config.name} as {index}: set its teacher.model to one with the tokenizer of "
                f"{before.config.teacher.model}"
            )


@on_cluster
@one_at_a_time
def measure_start(tuned: DistillConfig, start: DistillConfig) -> dict[str, Any]:
    """Evaluate the students of `start`, and its teacher, on its held-out windows and tasks, for `tuned`.

    Returns what `evaluate_students` does. Raises what that does.
    """
    inputs = Inputs(start)
    with inputs_first(start):
        corpus, students = open_held_out(inputs), evaluated_students(inputs)
        parts = evaluation_parts(inputs, corpus, students)
    made = make_parts(inputs, corpus, students, parts, _store(tuned), tuned, "start")
    return {name: summary(model) for name, model in read_start(tuned, start).items()} | {"skipped": not made}


def read_start(tuned: DistillConfig, start: DistillConfig) -> dict[str, dict[str, Any]]:
    """What `measure_start` found last of each model, with standard errors."""
    found = read_results(start, _store(tuned))
    return {} if found is None else found["models"]


def _store(tuned: DistillConfig) -> Store:
    return Store(tuned.home).child(_FOLDER)
