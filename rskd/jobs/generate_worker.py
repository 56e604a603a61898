"""The work of generation, where the model is: each part of answers is committed as soon as it is there.

model ─► Voice ─► questions of a part: each prompt so many times ─► engine ─► answers ─► Parquet
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from transformers import GenerationConfig

from rskd.config import PlannedGenerate
from rskd.cores import usable_cores
from rskd.evaluation.answers import AnswerPart, write_answers
from rskd.evaluation.generation import Answer, Question, Voice, generate, question_key
from rskd.models.digests import whole_copy
from rskd.models.load import load_model
from rskd.models.tokenizer import load_tokenizer
from rskd.storage import Store

Engine = Callable[[Sequence[Question]], Iterator[Answer]]


@dataclass(frozen=True)
class Made:
    """What one part of answers came to."""

    answers: int
    tokens: int
    bytes_written: int


@dataclass(frozen=True)
class GenerationRun:
    """All that a worker has to know; URIs and paths are absolute, since it has a working directory of its own."""

    source: str  # of the model: a folder, local or s3://
    attention: str
    trust_remote_code: bool
    answers_uri: str
    parts: tuple[AnswerPart, ...]
    settings: PlannedGenerate


def generate_parts(run: GenerationRun) -> Iterator[Made]:
    """Answer the prompts of all parts of `run`; yields what each came to once it is written."""
    torch.set_num_threads(usable_cores())
    store = Store(run.answers_uri)
    with whole_copy(Store(run.source)) as (directory, _), _engine(run, str(directory)) as (voice, answered):
        for part, questions in zip(run.parts, _questions(run, voice)):
            answers = list(answered(questions))
            written = write_answers(store, part, answers)
            yield Made(len(answers), sum(answer.num_tokens for answer in answers), written)


def _questions(run: GenerationRun, voice: Voice) -> list[list[Question]]:
    """Those of each part; a prompt that the chat template refuses is found before anything is generated."""
    return [
        [
            Question(ids, question_key(part.first_prompt + index, generation))
            for index, ids in enumerate(map(voice.ask, part.prompts))
            for generation in range(run.settings.generations)
        ]
        for part in run.parts
    ]


@contextmanager
def _engine(run: GenerationRun, directory: str) -> Iterator[tuple[Voice, Engine]]:
    """How the model is asked, and what answers."""
    tokenizer = load_tokenizer(directory, trust_remote_code=run.trust_remote_code)
    if run.settings.engine == "vllm":
        from rskd.evaluation.vllm_generation import VllmGenerator  # this process is in vLLM's environment

        voice = Voice.of(tokenizer, _generation_config(directory))
        lengths = {len(question.ids) for questions in _questions(run, voice) for question in questions}
        generator = VllmGenerator(directory, run.settings, lengths=lengths, trust_remote_code=run.trust_remote_code)
        try:
            yield voice, partial(generator.generate, voice)
        finally:
            generator.close()
        return
    model = load_model(
        directory,
        run.attention,
        dtype=getattr(torch, run.settings.dtype),
        device="cuda" if run.settings.gpus else "cpu",
        trust_remote_code=run.trust_remote_code,
    ).eval()
    voice = Voice.of(tokenizer, model.generation_config)
    yield voice, lambda questions: generate(model, voice, questions, run.settings)


def _generation_config(directory: str) -> GenerationConfig | None:
    """That of a model, if it has one."""
    try:
        return GenerationConfig.from_pretrained(directory)
    except OSError:
        return None
