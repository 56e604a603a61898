import pytest
import torch

from rskd.evaluation import acceptance, top1_agreement


def test_a_model_accepts_itself():
    logits = torch.randn(3, 5, 50, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(acceptance(logits, logits + 3), torch.ones(3, 5), atol=1e-6)
    assert top1_agreement(logits, logits).tolist() == [[1.0] * 5] * 3


def test_acceptance_is_one_minus_total_variation():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 7, 50, dtype=torch.float64, generator=generator)
    variation = (student.softmax(-1) - teacher.softmax(-1)).abs().sum(-1) / 2
    assert torch.allclose(acceptance(student, teacher), 1 - variation, atol=1e-12)


def test_by_hand():
    student = torch.tensor([0.5, 0.5, 0.0]).log()
    teacher = torch.tensor([0.2, 0.3, 0.5]).log()
    assert acceptance(student, teacher).item() == pytest.approx(0.5)
    assert top1_agreement(student, teacher).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_masked_ids_count_nothing_in_any_dtype(dtype: torch.dtype):
    logits = torch.zeros(2, 4, dtype=dtype)
    masked = logits.clone()
    masked[:, 2:] = -torch.inf
    result = acceptance(masked, logits)
    assert result.dtype == torch.float32
    assert torch.allclose(result, torch.full((2,), 0.5))


def test_refuses_different_vocabularies():
    for metric in (acceptance, top1_agreement):
        with pytest.raises(ValueError, match="differ in shape"):
            metric(torch.zeros(2, 5), torch.zeros(2, 6))
