"""Speculative decoding for real: a student drafts, its teacher decides, by Transformers' assisted generation.

    prompt ─► assisted generation (temperature 1, drafts of fixed length) ─► tokens, tokens gained in each round
    tokens ─► both models, once ─► Σ_v min(p_v, t_v) at each context where a drafted token was decided on

Given its context, a drafted token is accepted with probability a = Σ_v min(p_v, t_v) (Leviathan et al. 2023, Theorem
3.5), whatever came before. So the accepted tokens less the sum of a have mean 0 and variance Σ a(1-a): prediction and
measurement can be told apart by that error, though contexts of one text are not independent.

Shapes: L tokens of a text, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from rskd.evaluation.acceptance import acceptance
from rskd.models.causal_lm import cut_vocabulary


@dataclass(frozen=True)
class Generated:
    """One text, and what each round gave it."""

    tokens: Tensor  # int64 [L], the prompt first
    prompt_tokens: int
    rounds: list[int]  # tokens gained in each: the accepted ones, and one of the teacher's own


@dataclass(frozen=True)
class Speculation:
    """Accepted tokens, measured and predicted, over some texts."""

    rounds: int
    decided: int  # drafted tokens that were accepted, or the first of their round to be rejected
    accepted: int
    predicted: float  # Σ a over the contexts where one was decided on
    variance: float  # Σ a(1-a) over these

    def __add__(self, other: Speculation) -> Speculation:
        return Speculation(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def to_dict(self) -> dict[str, float]:
        """Shares of the decided tokens with the prediction's standard error, tokens a round, and the z-score."""
        error = math.sqrt(self.variance)
        return {
            "acceptance": self.accepted / max(1, self.decided),
            "predicted_acceptance": self.predicted / max(1, self.decided),
            "standard_error": error / max(1, self.decided),
            "z_score": (self.accepted - self.predicted) / error if error else 0.0,
            "accepted_per_round": self.accepted / max(1, self.rounds),
            "predicted_per_round": self.predicted / max(1, self.rounds),
            "rounds": self.rounds,
            "decided": self.decided,
        }


@torch.no_grad()
def speculate(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    prompts: Iterable[Tensor],
    *,
    vocab_size: int,
    draft_tokens: int,
    new_tokens: int,
    seed: int = 0,
) -> Iterator[Speculation]:
    """Continue each prompt, int64 [P], by `new_tokens` tokens, `draft_tokens` of them drafted in a round.

    Yields what was found so far after each text. Text goes on past end-of-text tokens, and its documents are not
    isolated. Ids from `vocab_size` on are cut off both models, for good. A text is a pure function of (models, prompt,
    seed + its index).
    """
    for model in (teacher, student):
        cut_vocabulary(model, vocab_size)
    total = Speculation(0, 0, 0, 0.0, 0.0)
    for index, prompt in enumerate(prompts):
        text = generate(teacher, student, prompt, draft_tokens=draft_tokens, new_tokens=new_tokens, seed=seed + index)
        total += compare(teacher, student, text, draft_tokens=draft_tokens)
        yield total


def generate(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    prompt: Tensor,
    *,
    draft_tokens: int,
    new_tokens: int,
    seed: int,
) -> Generated:
    """One text of the teacher's distribution."""
    length = len(prompt) + new_tokens
    # Also the defaults that `generate` would fill in from the checkpoint: end of text, top-k 50.
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_length": length}
    teacher.generation_config = GenerationConfig()
    student.generation_config = GenerationConfig(
        num_assistant_tokens=draft_tokens, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )
    recorder = _Recorder()
    input_ids = prompt[None].to(teacher.device)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        tokens = cast(Any, teacher).generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=GenerationConfig(**sampling),
            assistant_model=student,
            streamer=recorder,
        )
    return Generated(tokens[0], len(prompt), recorder.gained[1:])  # the first that it hears of is the prompt


class _Recorder(BaseStreamer):
    """Hears of the tokens that each round gained."""

    def __init__(self) -> None:
        self.gained: list[int] = []

    def put(self, value: Tensor) -> None:
        self.gained.append(value.shape[-1])

    def end(self) -> None:
        pass


@torch.no_grad()
def compare(teacher: PreTrainedModel, student: PreTrainedModel, text: Generated, *, draft_tokens: int) -> Speculation:
    """The accepted tokens of one text beside what the distributions at its contexts predict."""
    contexts, accepted = _decisions(text, draft_tokens)
    tokens = text.tokens[None, :-1]
    position = torch.tensor(contexts, dtype=torch.int64, device=tokens.device)
    student_logits, teacher_logits = (
        model(input_ids=tokens, use_cache=False).logits[0, position].double() for model in (student, teacher)
    )
    a = acceptance(student_logits, teacher_logits)
    return Speculation(len(text.rounds), len(contexts), accepted, float(a.sum()), float((a * (1 - a)).sum()))


def _decisions(text: Generated, draft_tokens: int) -> tuple[list[int], int]:
    """Positions of the last token of each context where a drafted token was decided on, and how many were accepted.

    A round that gains n+1 tokens accepted n, and rejected the next unless all that were drafted were accepted.
    """
    contexts: list[int] = []
    accepted, known = 0, text.prompt_tokens
    for gained in text.rounds:
        drafted = min(draft_tokens, len(text.tokens) - known - 1)  # a text's last token is never drafted
        contexts += range(known - 1, known - 1 + min(gained, drafted))
        accepted += gained - 1
        known += gained
    return contexts, accepted
