from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from rskd.evaluation import language_modeling
from rskd.evaluation.language_modeling import TEACHER, Batch, LanguageModel
from rskd.evaluation.passages import TokenValues, from_parquet, passage_rows, to_parquet, token_values
from rskd.models.causal_lm import hidden_states, output_head

VOCAB_SIZE = 384  # of the tokenizer; the models have 400 rows


@pytest.fixture(scope="module")
def models(tiny_teacher_dir: Path) -> dict[str, PreTrainedModel]:
    """A teacher, and a student whose padded rows would win every prediction."""
    teacher, student = (AutoModelForCausalLM.from_pretrained(tiny_teacher_dir).eval() for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        student.get_output_embeddings().weight[VOCAB_SIZE:] *= 100
    return {TEACHER: teacher, "small": student}


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(0, VOCAB_SIZE, (2, 9), generator=torch.Generator().manual_seed(1))


def read(models: dict[str, PreTrainedModel], windows: torch.Tensor) -> dict[str, TokenValues]:
    batch = Batch(np.array([3, 7]), windows)
    states = {
        name: LanguageModel(partial(hidden_states, model), output_head(model).narrow(VOCAB_SIZE)).read(batch)
        for name, model in models.items()
    }
    return {name: token_values(batch, own, states[TEACHER], lambda token: f"<{token}>") for name, own in states.items()}


@torch.no_grad()
def test_matches_a_dense_float64_computation(
    models: dict[str, PreTrainedModel], windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(language_modeling, "LOGITS_PER_CHUNK", 3 * VOCAB_SIZE)  # several chunks
    found = read(models, windows)
    logits = {name: model(windows[:, :-1]).logits[..., :VOCAB_SIZE].double() for name, model in models.items()}
    p, t = (logits[name].log_softmax(-1).flatten(0, 1) for name in ("small", TEACHER))
    small = found["small"]
    np.testing.assert_allclose(
        small.kl_to_teacher, F.kl_div(p, t, reduction="none", log_target=True).sum(-1), atol=1e-5
    )
    labels = windows[:, 1:].flatten()
    np.testing.assert_allclose(small.probability, p.gather(1, labels[:, None])[:, 0].exp(), rtol=1e-4)
    top = p.topk(5)
    np.testing.assert_allclose(small.probabilities, top.values.exp(), rtol=1e-4)
    assert small.likeliest == [[f"<{token_id}>" for token_id in ids] for ids in top.indices.tolist()]
    assert small.token == [f"<{label}>" for label in labels.tolist()]
    assert small.window.tolist() == [3] * 8 + [7] * 8
    assert small.position.tolist() == [*range(8), *range(8)]
    np.testing.assert_allclose(found[TEACHER].kl_to_teacher, 0, atol=1e-6)


def test_comes_back_from_its_file(models: dict[str, PreTrainedModel], windows: torch.Tensor):
    found = read(models, windows)
    back = from_parquet(to_parquet(found))
    assert list(back) == [TEACHER, "small"]
    for name, values in found.items():
        for field, value in asdict(values).items():
            np.testing.assert_array_equal(getattr(back[name], field), value)
    assert to_parquet(found) == to_parquet(found)


@pytest.mark.parametrize(("num_windows", "rows"), [(1, [0]), (2, [0, 1]), (4, [0, 1, 2, 3]), (100, [0, 33, 66, 99])])
def test_passages_are_spread_over_the_windows(num_windows: int, rows: list[int]):
    assert passage_rows(num_windows).tolist() == rows
