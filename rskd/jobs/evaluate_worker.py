"""The work of an evaluation, where the models are: each part yields the units that it has done, then its findings.

windows ─► teacher: hidden states, kept on disk ─► each student beside them      ─► values of every model
first tokens of windows ─► speculate, teacher and one student                    ─► of every student
a task's data ─► downstream.score, one model                                     ─► of every model

One model is loaded at a time, or teacher and one student to speculate. Windows are shared out among workers in
contiguous ranges of whole batches, so that a batch, and with it each logit, is the same for any number of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from rskd.config import PlannedEvaluate, TeacherConfig
from rskd.cores import usable_cores
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.evaluation import downstream
from rskd.evaluation.kept_states import KeptStates, kept_states
from rskd.evaluation.language_modeling import TEACHER, Batch, LanguageModel, States, measure, over_windows
from rskd.evaluation.passages import NUM_TOKENS, passage_rows, token_values
from rskd.evaluation.results import PASSAGES, WINDOW_VALUES
from rskd.evaluation.speculative import speculate
from rskd.evaluation.window_values import WindowValues
from rskd.models.causal_lm import hidden_states, output_head
from rskd.models.digests import whole_copy
from rskd.models.load import load_model
from rskd.models.memory import release_memory
from rskd.models.output_head import OutputHead
from rskd.models.tokenizer import begin_texts_with, load_tokenizer, token_text
from rskd.storage import Store
from rskd.teacher.transformers_teacher import TransformersTeacher

Findings = dict[str, dict[str, Any]]  # by model
Work = Callable[["EvaluationRun"], Iterator[int | Findings]]


@dataclass(frozen=True)
class EvaluationRun:
    """All that a worker has to know; URIs and paths are absolute, since it has a working directory of its own."""

    corpus_uri: str
    num_windows: int  # that are evaluated on
    windows: range  # of these the worker's own
    tokenizer: str
    teacher: TeacherConfig
    teacher_dir: str
    students: dict[str, tuple[str, str]]  # URI and attention implementation
    settings: PlannedEvaluate

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.settings.gpus else "cpu")

    def shared_out(self, workers: int) -> list[EvaluationRun]:
        """The runs of so many workers, of fewer where there are fewer batches; together they are this one."""
        size = self.settings.batch_windows
        num_batches = -(-self.num_windows // size)
        workers = min(workers, num_batches)
        borders = [min(self.num_windows, num_batches * n // workers * size) for n in range(workers + 1)]
        return [replace(self, windows=range(*ends)) for ends in pairwise(borders)]

    def load_teacher(self) -> TransformersTeacher:
        """The teacher on this worker's device."""
        return TransformersTeacher.load(self.teacher, model_dir=self.teacher_dir, device=self.device)

    def load_student(self, name: str) -> PreTrainedModel:
        """A student on this worker's device, in the precision of `settings`."""
        uri, attention = self.students[name]
        with whole_copy(Store(uri)) as (directory, _):
            return load_model(str(directory), attention, dtype=getattr(torch, self.settings.dtype), device=self.device)


def evaluate_windows(run: EvaluationRun) -> Iterator[int | Findings]:
    """The teacher and the students of `run` on its windows; yields each model's windows, batch by batch.

    The findings of a model have its `WindowValues` under WINDOW_VALUES; those of the first windows also its
    `TokenValues` under PASSAGES.
    """
    torch.set_num_threads(usable_cores())
    passages = [_passages(run)] if run.windows.start == 0 else []
    yield from compare_models(run, [*passages, *window_batches(run)])


def joined(parts: Sequence[Findings]) -> Findings:
    """What `evaluate_windows` found on all windows, from that of each worker in their order; METRICS are added.

    Raises ConfigError where no window has a token with a loss.
    """
    findings = {}
    for name, first in parts[0].items():
        values = WindowValues.joined([part[name][WINDOW_VALUES] for part in parts])
        findings[name] = over_windows(values) | first | {WINDOW_VALUES: values}
    return findings


@dataclass(frozen=True)
class Job:
    """What is measured of each model at once: a batch, which is read when it is its turn."""

    kind: str  # of the findings: WINDOW_VALUES or PASSAGES
    rows: np.ndarray  # row ids in the held-out corpus
    num_tokens: int | None  # of each window, the first; all by default
    values: Callable[[str, Batch, States, States], Any]  # of a model by its name, beside the teacher

    @property
    def units(self) -> int:
        """The windows that it counts for."""
        return len(self.rows) if self.kind == WINDOW_VALUES else 0


def window_batches(run: EvaluationRun) -> list[Job]:
    """The windows of `run`, batch by batch."""
    values, size = partial(measure, num_bins=run.settings.num_bins), run.settings.batch_windows
    starts = range(run.windows.start, run.windows.stop, size)
    rows = [np.arange(start, min(start + size, run.windows.stop)) for start in starts]
    return [Job(WINDOW_VALUES, of_batch, None, values) for of_batch in rows]


def _passages(run: EvaluationRun) -> Job:
    """The beginnings of a few of all windows."""
    tokenizer = load_tokenizer(run.tokenizer, trust_remote_code=run.teacher.trust_remote_code)
    text_of = lru_cache(partial(token_text, tokenizer))

    def values(_: str, batch: Batch, states: States, teacher: States):
        return token_values(batch, states, teacher, text_of)

    return Job(PASSAGES, passage_rows(run.num_windows), NUM_TOKENS + 1, values)


def compare_models(run: EvaluationRun, jobs: Sequence[Job]) -> Iterator[int | Findings]:
    """Do `jobs` with the teacher, then with each student; yields the windows of each, and what was found of a model.

    Where the teacher's hidden states would exceed what may be kept of them, all models take turns on some jobs at a
    time: that they are loaded again costs little beside so many windows.
    """
    corpus = PackedCorpus.open(run.corpus_uri)
    found: dict[str, dict[str, list[Any]]] = {name: defaultdict(list) for name in (TEACHER, *run.students)}
    with kept_states() as kept:
        while jobs:
            num_done = yield from _turn(run, corpus, jobs, kept, found)
            jobs = jobs[num_done:]
    yield {
        name: {
            kind: WindowValues.joined(values) if kind == WINDOW_VALUES else values[0] for kind, values in kinds.items()
        }
        for name, kinds in found.items()
    }


def _turn(
    run: EvaluationRun,
    corpus: PackedCorpus,
    jobs: Sequence[Job],
    kept: KeptStates,
    found: dict[str, dict[str, list[Any]]],
) -> Generator[int, None, int]:
    """Do those of `jobs` that there is room for, with all models; returns how many."""
    kept.clear()
    head, num_done = yield from _teacher_pass(run, corpus, jobs, kept, found[TEACHER])
    release_memory()
    for name in run.students:
        yield from _student_pass(run, corpus, name, jobs[:num_done], kept, head, found[name])
        release_memory()
    return num_done


def _teacher_pass(
    run: EvaluationRun, corpus: PackedCorpus, jobs: Sequence[Job], kept: KeptStates, found: dict[str, list[Any]]
) -> Generator[int, None, tuple[OutputHead, int]]:
    """Fill `kept` with what the teacher makes of `jobs`; returns its head, and how many of them there was room for."""
    teacher = run.load_teacher()
    model = language_model(teacher.model, corpus)
    num_done = 0
    for job in jobs:
        batch = read_batch(run, corpus, job)
        states = model.read(batch)
        found[job.kind].append(job.values(TEACHER, batch, states, states))
        kept.append(states.hidden)
        num_done += 1
        yield job.units
        if kept.is_full:
            break
    return model.head, num_done


def _student_pass(
    run: EvaluationRun,
    corpus: PackedCorpus,
    name: str,
    jobs: Sequence[Job],
    kept: KeptStates,
    teacher_head: OutputHead,
    found: dict[str, list[Any]],
) -> Iterator[int]:
    """A student on `jobs`, beside what the teacher made of them."""
    model = language_model(run.load_student(name), corpus)
    first = 0
    for job in jobs:
        batch = read_batch(run, corpus, job)
        states = model.read(batch)
        teacher = States(kept.read(first, len(states.hidden)).to(run.device), teacher_head)
        found[job.kind].append(job.values(name, batch, states, teacher))
        first += len(states.hidden)
        yield job.units


def language_model(model: PreTrainedModel, corpus: PackedCorpus) -> LanguageModel:
    """A model that reads windows of `corpus`."""
    manifest = corpus.manifest
    end_of_text_id = manifest.tokenizer["end_of_text_id"] if manifest.isolate_documents else None
    head = output_head(model).narrow(manifest.tokenizer["vocab_size"])
    return LanguageModel(partial(hidden_states, model, end_of_text_id=end_of_text_id), head)


def read_batch(run: EvaluationRun, corpus: PackedCorpus, job: Job) -> Batch:
    """Its windows on the worker's device; of passages all tokens count."""
    windows = corpus.read_rows(job.rows)
    input_ids = torch.from_numpy(windows.input_ids).long()[:, : job.num_tokens].to(run.device)
    if windows.has_loss is None or job.kind == PASSAGES:
        return Batch(job.rows, input_ids)
    return Batch(job.rows, input_ids, torch.from_numpy(windows.has_loss).to(run.device))


def evaluate_speculation(run: EvaluationRun) -> Iterator[int | Findings]:
    """Each student as the draft of the teacher; yields 1 for each text."""
    torch.set_num_threads(usable_cores())
    findings: Findings = {}
    teacher = run.load_teacher().model
    for name in run.students:
        for found in _speculation(run, teacher, name):
            findings[name] = found
            yield 1
        release_memory()
    yield findings


def _speculation(run: EvaluationRun, teacher: PreTrainedModel, name: str) -> Iterator[dict[str, float]]:
    """What was found of one student after each text."""
    settings = run.settings.speculative
    assert settings is not None
    corpus = PackedCorpus.open(run.corpus_uri)
    rows = np.arange(min(settings.windows, corpus.num_rows))
    prompts = torch.from_numpy(corpus.read_rows(rows).input_ids).long()[:, : corpus.seq_len - settings.new_tokens]
    speculation = speculate(
        teacher,
        run.load_student(name),
        prompts,
        vocab_size=corpus.manifest.tokenizer["vocab_size"],
        draft_tokens=settings.draft_tokens,
        new_tokens=settings.new_tokens,
        seed=settings.seed,
    )
    for found in speculation:
        yield found.to_dict()


def evaluate_task(task: str, run: EvaluationRun) -> Iterator[int | Findings]:
    """Every model on one downstream task; yields 1 for each model."""
    torch.set_num_threads(usable_cores())
    findings: Findings = {}
    for name in (TEACHER, *run.students):
        findings[name] = score(task, run, name)
        release_memory()
        yield 1
    yield findings


def score(task: str, run: EvaluationRun, model: str) -> dict[str, dict[str, float]]:
    """Metrics of the teacher or of one student on one downstream task, as `downstream.score` gives them.

    Texts begin as the documents of the corpus do.
    """
    learned = PackedCorpus.open(run.corpus_uri).manifest.tokenizer
    tokenizer = load_tokenizer(run.tokenizer, trust_remote_code=run.teacher.trust_remote_code)
    begin_texts_with(tokenizer, learned.get("bos_ids", []))
    return downstream.score(
        run.load_teacher().model if model == TEACHER else run.load_student(model),
        tokenizer,
        task,
        vocab_size=learned["vocab_size"],
        task_path=run.settings.task_path,
        batch_size=run.settings.batch_windows,
        limit=run.settings.task_limit,
    )
