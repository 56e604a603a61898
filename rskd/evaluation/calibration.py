"""Does a model's confidence match how often it is right? Expected calibration error and its reliability diagram.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", Eq. 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def bin_sums(confidence: Tensor, correct: Tensor, num_bins: int = 15, counted: Tensor | None = None) -> Tensor:
    """Count, Σ confidence and Σ correct [..., 3, M] in the bins ((m-1)/M, m/M], M = `num_bins`, in float64.

    `confidence` [..., n] in 0..1, the probability of the predicted class; `correct` [..., n], 0 or 1. Where `counted`
    bool [..., n] is given, the others are left out.
    """
    confidence, correct = confidence.double().cpu(), correct.double().cpu()
    if not ((confidence >= 0) & (confidence <= 1 + 1e-6)).all():
        raise ValueError("confidence must be in 0..1: give probabilities, not logits or percentages")
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)
    index = torch.bucketize(confidence, edges[1:-1])
    values = torch.stack([torch.ones_like(confidence), confidence, correct], dim=-2)
    if counted is not None:
        values *= counted.unsqueeze(-2).cpu()
    sums = torch.zeros(*values.shape[:-1], num_bins, dtype=torch.float64)
    return sums.scatter_add_(-1, index.unsqueeze(-2).expand_as(values), values)


class ReliabilityBins:
    """Sums over equal-width bins ((m-1)/M, m/M] of the confidence, M = `num_bins`, in float64; batches add up."""

    def __init__(self, num_bins: int = 15):
        self._sums = torch.zeros(3, num_bins, dtype=torch.float64)  # count, Σ confidence, Σ correct

    def add(self, confidence: Tensor, correct: Tensor) -> None:
        """Add n predictions: `confidence` [n] in 0..1, the probability of the predicted class; `correct` [n] 0 or 1."""
        if confidence.shape != correct.shape or confidence.ndim != 1:
            raise ValueError(
                f"confidence {tuple(confidence.shape)} and correct {tuple(correct.shape)} must both have shape [n]"
            )
        self.add_sums(bin_sums(confidence, correct, self._sums.shape[1]))

    def add_sums(self, sums: Tensor) -> None:
        """Add what `bin_sums` found of other predictions, [3, M]."""
        self._sums += sums

    @property
    def ece(self) -> float:
        """Σ_m n_m/n · |accuracy_m - confidence_m|, in 0..1; 0 without predictions."""
        count, confidence, correct = self._sums
        return ((correct - confidence).abs().sum() / count.sum().clamp(min=1)).item()

    def to_dict(self) -> dict[str, list[Any]]:
        """Count, mean confidence and accuracy of each bin (None where it is empty): the reliability diagram."""
        count, confidence, correct = self._sums.tolist()
        return {
            "count": [int(n) for n in count],
            "confidence": [total / n if n else None for total, n in zip(confidence, count, strict=True)],
            "accuracy": [total / n if n else None for total, n in zip(correct, count, strict=True)],
        }


def expected_calibration_error(
    confidence: Tensor | Sequence[float], correct: Tensor | Sequence[bool], num_bins: int = 15
) -> float:
    """Expected calibration error, in 0..1, of n predictions: `confidence` [n] in 0..1, `correct` [n] 0 or 1.

    Raises ValueError for shapes that differ and confidences outside 0..1.
    """
    bins = ReliabilityBins(num_bins)
    bins.add(torch.as_tensor(confidence), torch.as_tensor(correct))
    return bins.ece
