import numpy as np
import pytest
import torch

from rskd.evaluation import ReliabilityBins, expected_calibration_error


def reference_ece(confidence: np.ndarray, correct: np.ndarray, num_bins: int) -> float:
    """Guo et al. 2017, Eq. 3, bin by bin."""
    total = 0.0
    for low, high in zip(np.linspace(0, 1, num_bins + 1)[:-1], np.linspace(0, 1, num_bins + 1)[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_matches_the_definition(num_bins: int):
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.01, 1, 5000)
    correct = rng.uniform(size=5000) < confidence**2
    expected = reference_ece(confidence, correct, num_bins)
    assert expected_calibration_error(torch.tensor(confidence), torch.tensor(correct), num_bins) == pytest.approx(
        expected, abs=1e-12
    )


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_has_not():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(200_000, generator=generator)
    correct = torch.rand(200_000, generator=generator) < confidence
    assert expected_calibration_error(confidence, correct) < 0.01
    assert expected_calibration_error(confidence.sqrt(), correct) == pytest.approx(2 / 3 - 1 / 2, abs=0.01)


def test_by_hand():
    assert expected_calibration_error([1.0, 1.0, 0.9, 0.9], [1, 1, 1, 0]) == pytest.approx(0.5 * 0.4)
    assert expected_calibration_error([0.0, 0.0], [0, 1]) == 0.5
    assert expected_calibration_error([], []) == 0.0


def test_batches_add_up():
    generator = torch.Generator().manual_seed(1)
    confidence, correct = torch.rand(1000, generator=generator), torch.rand(1000, generator=generator) < 0.3
    whole, streamed = ReliabilityBins(), ReliabilityBins()
    whole.add(confidence, correct)
    for rows in torch.arange(1000).split(130):
        streamed.add(confidence[rows], correct[rows])
    assert streamed.ece == pytest.approx(whole.ece, abs=1e-12)
    assert streamed.to_dict()["count"] == whole.to_dict()["count"]


def test_the_diagram_of_each_bin():
    bins = ReliabilityBins(num_bins=4)
    bins.add(torch.tensor([0.25, 0.26, 0.5, 1.0]), torch.tensor([0, 1, 1, 1]))
    assert bins.to_dict() == {
        "count": [1, 2, 0, 1],
        "confidence": [0.25, pytest.approx(0.38), None, 1.0],
        "accuracy": [0.0, 1.0, None, 1.0],
    }


@pytest.mark.parametrize(("confidence", "correct"), [([0.5, 0.5], [1]), ([1.5], [1]), ([-0.1], [0]), ([[0.5]], [[1]])])
def test_refuses_what_is_no_prediction(confidence: list, correct: list):
    with pytest.raises(ValueError, match="confidence"):
        expected_calibration_error(confidence, correct)
