import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from rskd.errors import NonFiniteLogitsError, OutputError
from rskd.evaluation import language_modeling
from rskd.evaluation.language_modeling import TEACHER, Comparison, LanguageModel, pct_ce_to_fullkd
from rskd.evaluation.window_values import METRICS
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
    return LanguageModel(partial(hidden_states, model), output_head(model))


def compare(teacher: PreTrainedModel, student: PreTrainedModel, batches, **options) -> dict:
    models = {TEACHER: as_language_model(teacher), "small": as_language_model(student)}
    comparison = Comparison(models, vocab_size=VOCAB_SIZE, **options)
    for batch in batches:
        comparison.add(batch)
    return comparison.results()


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
    comparison = Comparison(models, vocab_size=VOCAB_SIZE)
    for batch in windows.split(4):
        comparison.add(batch)
    values, found = comparison.window_values("small"), comparison.results()["small"]
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

    head = output_head(teacher)
    apart, alone = isolated(joined)[:, 5:], hidden_states(teacher, second)
    assert torch.allclose(head.logits(apart), head.logits(alone), atol=1e-4)
    comparison = Comparison({TEACHER: LanguageModel(isolated, head)}, vocab_size=VOCAB_SIZE)
    comparison.add(joined)
    assert comparison.results()["teacher"]["lm_loss"] != pytest.approx(
        compare(teacher, teacher, [joined])["teacher"]["lm_loss"], abs=1e-4
    )


def test_one_window_has_no_standard_error(teacher: PreTrainedModel, windows: torch.Tensor):
    assert compare(teacher, teacher, [windows[:1]])["small"]["standard_error"]["lm_loss"] is None


def test_pct_ce_to_fullkd():
    assert pct_ce_to_fullkd(2.9, ce=3.0, full_kd=2.8) == pytest.approx(50)
    assert pct_ce_to_fullkd(3.1, ce=3.0, full_kd=2.8) == pytest.approx(-50)
