import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from rskd.errors import ConfigError, NonFiniteLogitsError, OutputError
from rskd.evaluation import expected_calibration_error, language_modeling
from rskd.evaluation.language_modeling import (
    TEACHER,
    Batch,
    LanguageModel,
    measure,
    over_windows,
    pct_ce_to_fullkd,
)
from rskd.evaluation.window_values import METRICS, WindowValues, mean_over_tokens
from rskd.models.causal_lm import hidden_states, output_head

VOCAB_SIZE = 384  # of the tokenizer; the models have 400 rows


@pytest.fixture(scope="module")
def teacher(tiny_teacher_dir: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_teacher_dir).eval()


@pytest.fixture(scope="module")
def student(tiny_teacher_dir: Path) -> PreTrainedModel:
    """The teacher with noise on its weights, whose padded rows would win every prediction."""
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.get_output_embeddings().weight[VOCAB_SIZE:] *= 100
    return model


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    return torch.randint(0, VOCAB_SIZE, (6, 13), generator=torch.Generator().manual_seed(1))


def as_language_model(model: PreTrainedModel) -> LanguageModel:
    return LanguageModel(partial(hidden_states, model), output_head(model).narrow(VOCAB_SIZE))


def batches_of(windows: Sequence[torch.Tensor], has_loss: Sequence[torch.Tensor | None] | None = None) -> list[Batch]:
    starts = np.cumsum([0, *map(len, windows)])
    masks = has_loss or [None] * len(windows)
    return [Batch(np.arange(start, start + len(ids)), ids, mask) for start, ids, mask in zip(starts, windows, masks)]


def values_of(models: dict[str, LanguageModel], batches: Sequence[Batch]) -> dict[str, WindowValues]:
    parts: dict[str, list[WindowValues]] = {name: [] for name in models}
    for batch in batches:
        states = {name: model.read(batch) for name, model in models.items()}
        for name, found in parts.items():
            found.append(measure(name, batch, states[name], states[TEACHER]))
    return {name: WindowValues.joined(found) for name, found in parts.items()}


def compare(teacher: PreTrainedModel, student: PreTrainedModel, windows, has_loss=None) -> dict:
    models = {TEACHER: as_language_model(teacher), "small": as_language_model(student)}
    found = values_of(models, batches_of(windows, has_loss))
    return {name: over_windows(values) for name, values in found.items()}


@torch.no_grad()
def test_matches_a_dense_float64_computation(teacher: PreTrainedModel, student: PreTrainedModel, windows: torch.Tensor):
    found = compare(teacher, student, [windows])["small"]
    p, t = (model(windows[:, :-1]).logits[..., :VOCAB_SIZE].double().log_softmax(-1) for model in (student, teacher))
    losses = F.nll_loss(p.transpose(1, 2), windows[:, 1:], reduction="none")
    assert found["lm_loss"] == pytest.approx(losses.mean().item(), abs=1e-5)
    assert found["kl_to_teacher"] == pytest.approx((t.exp() * (t - p)).sum(-1).mean().item(), abs=1e-5)
    assert found["acceptance"] == pytest.approx(torch.minimum(p, t).exp().sum(-1).mean().item(), abs=1e-6)
    assert found["top1_agreement"] == pytest.approx((p.argmax(-1) == t.argmax(-1)).double().mean().item())
    assert sum(found["reliability"]["count"]) == losses.numel()
    by_window = losses.mean(1)
    assert found["standard_error"]["lm_loss"] == pytest.approx(
        (by_window.std() / len(by_window) ** 0.5).item(), abs=1e-5
    )


def test_the_teacher_agrees_with_itself(teacher: PreTrainedModel, student: PreTrainedModel, windows: torch.Tensor):
    found = compare(teacher, student, [windows])["teacher"]
    assert found["kl_to_teacher"] == 0
    assert found["top1_agreement"] == 1
    assert found["acceptance"] == pytest.approx(1, abs=1e-6)


def test_single_windows_add_up_to_the_results(
    teacher: PreTrainedModel, student: PreTrainedModel, windows: torch.Tensor
):
    models = {TEACHER: as_language_model(teacher), "small": as_language_model(student)}
    values = values_of(models, batches_of(windows.split(4)))["small"]
    found = over_windows(values)
    assert values.window.tolist() == list(range(6))
    assert values.count.sum(1).tolist() == [12] * 6
    assert values.count.sum(0).tolist() == found["reliability"]["count"]
    for metric in METRICS:
        assert values.metric(metric) == pytest.approx(found[metric], abs=1e-12)
    alone = compare(teacher, student, [windows[4:5]])["small"]
    assert values.means["lm_loss"][4] == pytest.approx(alone["lm_loss"], abs=1e-6)
    gap = np.abs(values.correct[4] - values.confidence[4]).sum() / 12
    assert gap == pytest.approx(alone["ece"], abs=1e-6)


def test_a_model_that_is_not_finite_is_named(teacher: PreTrainedModel, windows: torch.Tensor):
    broken = copy.deepcopy(teacher)
    broken.get_output_embeddings().weight.data[5] = torch.nan
    with pytest.raises(OutputError, match="student small: its lm_loss on held-out windows is not finite"):
        compare(teacher, broken, [windows])
    with pytest.raises(NonFiniteLogitsError, match=r"set teacher\.dtype"):
        compare(broken, teacher, [windows])


def test_neither_batches_nor_chunks_change_the_result(
    teacher: PreTrainedModel, student: PreTrainedModel, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    whole = compare(teacher, student, [windows])
    monkeypatch.setattr(language_modeling, "LOGITS_PER_CHUNK", 7 * VOCAB_SIZE)  # 7 rows: chunks straddle windows
    streamed = compare(teacher, student, windows.split(4))
    for name, metrics in whole.items():
        for metric in METRICS:
            assert streamed[name][metric] == pytest.approx(metrics[metric], abs=1e-6)


def test_isolated_documents_are_not_seen_by_others(teacher: PreTrainedModel, windows: torch.Tensor):
    """A window of two documents has, at the second one's positions, the losses of that document alone."""
    end = VOCAB_SIZE - 1
    second = windows[:1]
    joined = torch.cat([windows[1:2, :4], torch.tensor([[end]]), second], dim=1)

    def isolated(input_ids: torch.Tensor) -> torch.Tensor:
        return hidden_states(teacher, input_ids, end)

    head = output_head(teacher).narrow(VOCAB_SIZE)
    apart, alone = isolated(joined)[:, 5:], hidden_states(teacher, second)
    assert torch.allclose(head.logits(apart), head.logits(alone), atol=1e-4)
    found = values_of({TEACHER: LanguageModel(isolated, head)}, batches_of([joined]))[TEACHER]
    assert over_windows(found)["lm_loss"] != pytest.approx(
        compare(teacher, teacher, [joined])["teacher"]["lm_loss"], abs=1e-4
    )


def test_one_window_has_no_standard_error(teacher: PreTrainedModel, windows: torch.Tensor):
    assert compare(teacher, teacher, [windows[:1]])["small"]["standard_error"]["lm_loss"] is None


def test_pct_ce_to_fullkd():
    assert pct_ce_to_fullkd(2.9, ce=3.0, full_kd=2.8) == pytest.approx(50)
    assert pct_ce_to_fullkd(3.1, ce=3.0, full_kd=2.8) == pytest.approx(-50)


@torch.no_grad()
def test_where_some_tokens_have_no_loss_the_others_count(
    teacher: PreTrainedModel, student: PreTrainedModel, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    """Against dense float64; one window has no token with a loss, one has them all."""
    has_loss = torch.rand(6, 12, generator=torch.Generator().manual_seed(2)) < 0.4
    has_loss[1], has_loss[4] = False, True
    monkeypatch.setattr(language_modeling, "LOGITS_PER_CHUNK", 7 * VOCAB_SIZE)
    models = {TEACHER: as_language_model(teacher), "small": as_language_model(student)}
    parts = [slice(0, 1), slice(1, 2), slice(2, 6)]
    batches = batches_of([windows[rows] for rows in parts], [has_loss[rows] for rows in parts])
    values = values_of(models, batches)["small"]
    found = over_windows(values)

    p, t = (model(windows[:, :-1]).logits[..., :VOCAB_SIZE].double().log_softmax(-1) for model in (student, teacher))
    losses = F.nll_loss(p.transpose(1, 2), windows[:, 1:], reduction="none")
    kl, tokens = (t.exp() * (t - p)).sum(-1), has_loss.sum(1)
    assert found["lm_loss"] == pytest.approx(losses[has_loss].mean().item(), abs=1e-5)
    assert found["kl_to_teacher"] == pytest.approx(kl[has_loss].mean().item(), abs=1e-5)
    assert values.tokens.tolist() == tokens.tolist()
    assert values.means["lm_loss"][1] == 0
    assert values.metric("lm_loss") == pytest.approx(found["lm_loss"], abs=1e-12)
    assert values.metric("ece") == pytest.approx(found["ece"], abs=1e-12)
    confidence, correct = p[has_loss].exp().max(-1).values, p[has_loss].argmax(-1) == windows[:, 1:][has_loss]
    assert found["ece"] == pytest.approx(expected_calibration_error(confidence, correct), abs=1e-6)
    residuals = ((losses - found["lm_loss"]) * has_loss).sum(1)
    error = (5 / 4 * (residuals**2).sum()).sqrt() / tokens.sum()  # five windows have tokens
    assert found["standard_error"]["lm_loss"] == pytest.approx(error.item(), abs=1e-5)

    with pytest.raises(ConfigError, match="none of 6 held-out windows has a token with a loss"):
        compare(teacher, student, [windows], [torch.zeros_like(has_loss)])


def test_a_mask_of_all_tokens_changes_nothing(
    teacher: PreTrainedModel, student: PreTrainedModel, windows: torch.Tensor
):
    whole = compare(teacher, student, [windows])
    masked = compare(teacher, student, [windows], [torch.ones(6, 12, dtype=torch.bool)])
    for name, found in masked.items():
        assert {metric: found[metric] for metric in METRICS} == pytest.approx(
            {metric: whole[name][metric] for metric in METRICS}, abs=1e-12
        )
        assert found["standard_error"] == pytest.approx(whole[name]["standard_error"], abs=1e-12)
        assert found["reliability"] == whole[name]["reliability"]


def test_the_error_of_windows_of_one_size_is_that_of_their_means():
    means = np.random.default_rng(0).normal(size=(4, 30))
    mean, error = mean_over_tokens(means, np.full(30, 12.0))
    assert mean == pytest.approx(means.mean(1), abs=1e-12)
    assert error == pytest.approx(means.std(1, ddof=1) / 30**0.5, abs=1e-12)


def test_the_error_of_windows_of_many_sizes_is_the_spread_of_the_mean():
    """Windows with more tokens have other means; those without any count for nothing."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 20, (4000, 60)).astype(float)
    means = rng.normal(size=tokens.shape) / 3 + tokens / 10
    found = [mean_over_tokens(one, count) for one, count in zip(means, tokens)]
    assert np.mean([error for _, error in found]) == pytest.approx(np.std([mean for mean, _ in found]), rel=0.05)
