"""The work of an evaluation, where the models are: each part yields the units that it has done, then its findings.

windows ─► Comparison                       ─► metrics of every model
first tokens of windows ─► speculate        ─► of every student
a task's data ─► downstream.score           ─► of every model
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rskd.config import PlannedEvaluate, TeacherConfig
from rskd.cores import usable_cores
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.evaluation import downstream
from rskd.evaluation.language_modeling import TEACHER, Comparison, LanguageModel
from rskd.evaluation.passages import NUM_TOKENS, TokenValues, passage_rows, token_values
from rskd.evaluation.results import PASSAGES, WINDOW_VALUES
from rskd.evaluation.speculative import speculate
from rskd.models.causal_lm import hidden_states, output_head
from rskd.models.digests import whole_copy
from rskd.models.load import load_model
from rskd.models.tokenizer import begin_texts_with, load_tokenizer, token_text
from rskd.storage import Store
from rskd.teacher.transformers_teacher import TransformersTeacher

Findings = dict[str, dict[str, Any]]  # by model
Work = Callable[["EvaluationRun"], Iterator[int | Findings]]


@dataclass(frozen=True)
class EvaluationRun:
    """All that a worker has to know; URIs and paths are absolute, since it has a working directory of its own."""

    corpus_uri: str
    num_windows: int
    tokenizer: str
    teacher: TeacherConfig
    teacher_dir: str
    students: dict[str, tuple[str, str]]  # URI and attention implementation
    settings: PlannedEvaluate

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.settings.gpus else "cpu")

    def load_teacher(self) -> TransformersTeacher:
        """The teacher on this worker's device."""
        return TransformersTeacher.load(self.teacher, model_dir=self.teacher_dir, device=self.device)

    def load_student(self, name: str) -> PreTrainedModel:
        """A student on this worker's device, in float32."""
        uri, attention = self.students[name]
        with whole_copy(Store(uri)) as (directory, _):
            student = load_model(str(directory), attention).eval()
        torch.nn.Module.to(student, self.device)
        return student


def evaluate_windows(run: EvaluationRun) -> Iterator[int | Findings]:
    """All models side by side on the held-out windows; yields the windows of each batch.

    The findings of a model have its `WindowValues` under WINDOW_VALUES, and its `TokenValues` under PASSAGES.
    """
    torch.set_num_threads(usable_cores())
    models = load_models(run)
    comparison = comparison_of(run, models)
    for input_ids, has_loss in held_out_batches(run):
        comparison.add(input_ids, has_loss)
        yield len(input_ids)
    passages = _passages(run, models)
    yield {
        name: found | {WINDOW_VALUES: comparison.window_values(name), PASSAGES: passages[name]}
        for name, found in comparison.results().items()
    }


def load_models(run: EvaluationRun) -> dict[str, LanguageModel]:
    """The teacher and the students of `run`."""
    manifest = PackedCorpus.open(run.corpus_uri).manifest
    end_of_text_id = manifest.tokenizer["end_of_text_id"] if manifest.isolate_documents else None
    teacher = run.load_teacher()
    return {TEACHER: LanguageModel(partial(teacher.hidden, end_of_text_id=end_of_text_id), teacher.head)} | {
        name: _language_model(run.load_student(name), end_of_text_id) for name in run.students
    }


def comparison_of(run: EvaluationRun, models: Mapping[str, LanguageModel]) -> Comparison:
    """The students beside the teacher, with no windows yet."""
    return Comparison(
        models,
        vocab_size=PackedCorpus.open(run.corpus_uri).manifest.tokenizer["vocab_size"],
        num_bins=run.settings.num_bins,
    )


def _passages(run: EvaluationRun, models: Mapping[str, LanguageModel]) -> dict[str, TokenValues]:
    """Every model on the beginnings of a few windows."""
    corpus = PackedCorpus.open(run.corpus_uri)
    rows = passage_rows(run.num_windows)
    tokenizer = load_tokenizer(run.tokenizer, trust_remote_code=run.teacher.trust_remote_code)
    return token_values(
        models,
        rows,
        _read(corpus, rows)[:, : NUM_TOKENS + 1].to(run.device),
        vocab_size=corpus.manifest.tokenizer["vocab_size"],
        text_of=lru_cache(partial(token_text, tokenizer)),
    )


def held_out_batches(run: EvaluationRun) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The held-out windows of `run`, ids [B, S + 1] on its device, and which positions have a loss, bool [B, S].

    A batch at a time; None: all have one.
    """
    corpus = PackedCorpus.open(run.corpus_uri)
    for start in range(0, run.num_windows, run.settings.batch_windows):
        rows = np.arange(start, min(start + run.settings.batch_windows, run.num_windows))
        windows = corpus.read_rows(rows)
        has_loss = None if windows.has_loss is None else torch.from_numpy(windows.has_loss).to(run.device)
        yield torch.from_numpy(windows.input_ids).long().to(run.device), has_loss


def evaluate_speculation(run: EvaluationRun) -> Iterator[int | Findings]:
    """Each student as the draft of the teacher; yields 1 for each text."""
    torch.set_num_threads(usable_cores())
    settings = run.settings.speculative
    assert settings is not None
    corpus = PackedCorpus.open(run.corpus_uri)
    rows = np.arange(min(settings.windows, corpus.num_rows))
    prompts = _read(corpus, rows)[:, : corpus.seq_len - settings.new_tokens]
    teacher = run.load_teacher().model
    findings: Findings = {}
    for name in run.students:
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
            findings[name] = found.to_dict()
            yield 1
    yield findings


def evaluate_task(task: str, run: EvaluationRun) -> Iterator[int | Findings]:
    """Every model on one downstream task; yields 1 for each model."""
    torch.set_num_threads(usable_cores())
    findings: Findings = {}
    for name in (TEACHER, *run.students):
        findings[name] = score(task, run, name)
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


def _read(corpus: PackedCorpus, rows: np.ndarray) -> Tensor:
    return torch.from_numpy(corpus.read_rows(rows).input_ids).long()


def _language_model(student: PreTrainedModel, end_of_text_id: int | None) -> LanguageModel:
    return LanguageModel(partial(hidden_states, student, end_of_text_id=end_of_text_id), output_head(student))
