"""Answers of a causal LM to prompts: batched, and each with draws of its own.

    prompt ─► chat template, or raw text ─► Question(ids, key) ─► generate ─► tokens up to the end of the turn ─► Answer

Token t of an answer comes from one uniform number that is a pure function of (seed, key, t), by the inverse of the
cumulative distribution. So an answer does not depend on its batch, but for the rounding of the model's logits, and
models that are compared answer from the same draws. An answer costs one forward pass a token, over keys and values.

Shapes: B rows of a batch, T tokens, V rows of the head.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rskd.config import GenerateConfig
from rskd.errors import ConfigError, NonFiniteLogitsError, first_line
from rskd.evaluation.prompts import Prompt
from rskd.models.chat_template import end_of_turn_id, fixed_date
from rskd.models.tokenizer import end_of_text_id, vocab_size
from rskd.rng import uniforms

Finish = Literal["stop", "length", "no room"]
_GENERATION_BITS = 20


@dataclass(frozen=True)
class Question:
    """One answer that is wanted: the ids that it follows, and the key of its draws."""

    ids: tuple[int, ...]
    key: int


@dataclass(frozen=True)
class Answer:
    """What a model said: `finish` is stop (it ended its turn), length (cut), no room (the prompt is too long)."""

    text: str
    num_tokens: int
    finish: Finish


@dataclass(frozen=True)
class Voice:
    """How a model is asked, and how its tokens are read: its tokenizer, and the ids that end an answer."""

    tokenizer: PreTrainedTokenizerFast
    stop_ids: tuple[int, ...]
    num_ids: int  # that the tokenizer has; a model may have more, as padding

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, generation_config: Any = None) -> Voice:
        """An answer ends where the generation config, the tokenizer or the chat template ends a turn."""
        ends = getattr(generation_config, "eos_token_id", None)
        own = [ends] if isinstance(ends, int) else list(ends or ())
        found = [*own, tokenizer.eos_token_id, end_of_text_id(tokenizer), end_of_turn_id(tokenizer)]
        stop_ids = sorted({index for index in found if isinstance(index, int)})
        return cls(tokenizer, tuple(stop_ids), vocab_size(tokenizer))

    def ask(self, prompt: Prompt) -> tuple[int, ...]:
        """Ids of a prompt: by the chat template up to where the assistant begins, or of the raw text where there is
        none.

        Raises ConfigError for messages that the template refuses.
        """
        if self.tokenizer.chat_template is None:
            return tuple(self.tokenizer(prompt.raw)["input_ids"])
        text = _rendered(self.tokenizer, prompt.messages, add_generation_prompt=True)
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def read(self, tokens: Sequence[int], limit: int) -> Answer:
        """The answer that begins with `tokens`, of which `limit` count at most."""
        tokens = tokens[:limit]
        end = next((place for place, token in enumerate(tokens) if token in self.stop_ids), None)
        said = self.tokenizer.decode(list(tokens[:end]), skip_special_tokens=True)
        return Answer(str(said), len(tokens[:end]), "length" if end is None else "stop")


def _rendered(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Any], **options: Any) -> str:
    try:
        template = fixed_date(tokenizer.get_chat_template())
        return str(tokenizer.apply_chat_template(list(messages), chat_template=template, tokenize=False, **options))
    except Exception as error:  # jinja raises what a template tells it to
        raise ConfigError(
            f"the chat template of {tokenizer.name_or_path} refuses a prompt ({first_line(error)}): correct it"
        ) from None


def question_key(prompt_index: int, generation: int) -> int:
    """Key of the draws of one answer to one prompt of a set."""
    return (prompt_index << _GENERATION_BITS) + generation


def room(model_config: Any, settings: GenerateConfig, num_prompt_tokens: int) -> int:
    """How many tokens an answer may have after so many of a prompt: the model has so many positions."""
    positions = getattr(model_config.get_text_config(), "max_position_embeddings", None) or 0
    return min(settings.max_new_tokens, positions - num_prompt_tokens) if positions > 0 else settings.max_new_tokens


@torch.inference_mode()
def generate(
    model: PreTrainedModel, voice: Voice, questions: Sequence[Question], settings: GenerateConfig
) -> Iterator[Answer]:
    """Answers to `questions`, in order, `settings.batch_answers` at a time.

    Ids that the tokenizer does not have are never drawn. Raises NonFiniteLogitsError.
    """

    def room_for(question: Question) -> int:
        return room(model.config, settings, len(question.ids))

    for limit, alike in itertools.groupby(questions, room_for):
        if limit < 1:
            yield from (Answer("", 0, "no room") for _ in alike)
            continue
        rest = list(alike)
        for start in range(0, len(rest), settings.batch_answers):
            batch = rest[start : start + settings.batch_answers]
            for tokens in _continued(model, voice, batch, settings, limit):
                yield voice.read(tokens, limit)


def _continued(
    model: PreTrainedModel, voice: Voice, batch: Sequence[Question], settings: GenerateConfig, limit: int
) -> list[list[int]]:
    """The tokens that follow each question, padded on the left so that all answers begin at one place."""
    longest = max(len(question.ids) for question in batch)
    pad = voice.stop_ids[0]
    rows = [[pad] * (longest - len(question.ids)) + list(question.ids) for question in batch]
    mask = [[0] * (longest - len(question.ids)) + [1] * len(question.ids) for question in batch]
    keys = torch.tensor([question.key for question in batch])
    draws_BT = uniforms(keys, limit, seed=settings.seed).to(model.device)
    # The model's own settings, such as a repetition penalty, are not part of the protocol.
    model.generation_config = GenerationConfig(
        max_new_tokens=limit, do_sample=False, eos_token_id=list(voice.stop_ids), pad_token_id=pad
    )
    generate_tokens: Any = model.generate  # Transformers' types leave it a tensor
    made = generate_tokens(
        input_ids=torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        logits_processor=LogitsProcessorList([_KeyedDraw(draws_BT, longest, voice.num_ids, settings)]),
    )
    return made[:, longest:].tolist()


class _KeyedDraw(LogitsProcessor):
    """Leaves one token a row possible: the one that this row's uniform number of this step draws."""

    def __init__(self, draws_BT: Tensor, start: int, num_ids: int, settings: GenerateConfig):
        self._draws_BT, self._start, self._num_ids, self._settings = draws_BT, start, num_ids, settings

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self._start
        chosen = draw(
            scores[:, : self._num_ids],
            self._draws_BT[:, step],
            temperature=self._settings.temperature,
            top_p=self._settings.top_p,
        )
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def draw(logits_BV: Tensor, uniform_B: Tensor, *, temperature: float, top_p: float = 1.0) -> Tensor:
    """One id a row, int64 [B], of softmax(logits / temperature) within its likeliest mass `top_p`.

    By the inverse of the cumulative distribution in float64; the likeliest id at temperature 0. Raises
    NonFiniteLogitsError.
    """
    logits_BV = logits_BV.double()
    if not logits_BV.max(-1).values.isfinite().all():  # NaN is the greatest
        raise NonFiniteLogitsError
    if temperature == 0:
        return logits_BV.argmax(-1)
    probabilities_BV = torch.softmax(logits_BV / temperature, -1)
    if top_p < 1:
        ordered, ids = torch.sort(probabilities_BV, dim=-1, descending=True, stable=True)
        ordered = torch.where(ordered.cumsum(-1) - ordered < top_p, ordered, 0.0)
        probabilities_BV = torch.zeros_like(ordered).scatter_(-1, ids, ordered)
    cumulative_BV = probabilities_BV.cumsum(-1)
    targets_B1 = uniform_B[:, None] * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, targets_B1, right=True)[:, 0].clamp_(max=logits_BV.shape[1] - 1)
