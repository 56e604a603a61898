"""Assisted generation of a tiny teacher with a noisy copy of it as the draft."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rskd.evaluation.speculative import Generated, Speculation, _decisions, compare, generate, speculate

VOCAB_SIZE, DRAFT, NEW = 384, 3, 40


def load(directory: Path, noise: float = 0.0, seed: int = 1) -> PreTrainedModel:
    """The teacher (its vocabulary padded to 400), with noise on its weights."""
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    return model


def prompts(number: int) -> torch.Tensor:
    return torch.randint(1, VOCAB_SIZE, (number, 8), generator=torch.Generator().manual_seed(0))


def test_measured_and_predicted_agree_and_another_draft_is_noticed(tiny_teacher_dir: Path):
    teacher, student = load(tiny_teacher_dir), load(tiny_teacher_dir, noise=0.1)
    found = list(
        speculate(teacher, student, prompts(6), vocab_size=VOCAB_SIZE, draft_tokens=DRAFT, new_tokens=NEW, seed=7)
    )[-1]
    numbers = found.to_dict()
    assert abs(numbers["z_score"]) < 4
    assert 0.1 < numbers["acceptance"] < 0.9
    assert found.accepted + found.rounds == 6 * NEW

    other = load(tiny_teacher_dir, noise=0.4, seed=2)
    other.resize_token_embeddings(VOCAB_SIZE)
    texts = [
        generate(teacher, student, prompt, draft_tokens=DRAFT, new_tokens=NEW, seed=7 + index)
        for index, prompt in enumerate(prompts(6))
    ]
    as_found = sum((compare(teacher, student, text, draft_tokens=DRAFT) for text in texts), Speculation(0, 0, 0, 0, 0))
    assert as_found.accepted == found.accepted  # the same texts again
    mistaken = sum((compare(teacher, other, text, draft_tokens=DRAFT) for text in texts), Speculation(0, 0, 0, 0, 0))
    assert abs(mistaken.to_dict()["z_score"]) > 5


def test_a_perfect_draft_is_always_accepted(tiny_teacher_dir: Path):
    teacher, student = load(tiny_teacher_dir), load(tiny_teacher_dir)
    [found] = speculate(teacher, student, prompts(1), vocab_size=VOCAB_SIZE, draft_tokens=DRAFT, new_tokens=NEW)
    assert found.accepted == found.decided
    assert found.rounds == NEW // (DRAFT + 1)
    assert found.predicted == pytest.approx(found.decided, rel=1e-5)


def test_decisions_are_those_of_the_rounds():
    # After a prompt of 2: two accepted and one rejected; all three accepted; none; the last token is not drafted.
    text = Generated(torch.arange(2 + 3 + 4 + 1 + 1), 2, [3, 4, 1, 1])
    contexts, accepted = _decisions(text, draft_tokens=3)
    assert contexts == [1, 2, 3, 4, 5, 6, 8]
    assert accepted == 5
