"""A mean with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mean:
    """Mean of independent values, and its standard error."""

    value: float
    error: float

    @classmethod
    def of(cls, values: Tensor | Sequence[float]) -> Self:
        """Of `values` [n], n > 1."""
        values = torch.as_tensor(values, dtype=torch.float64)
        return cls(float(values.mean()), float(values.std()) / math.sqrt(len(values)))
