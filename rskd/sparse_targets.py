"""The sparse target distribution t^s: what the teacher side hands to the student side, and all that it hands over.

Shapes: ... any leading shape (rows, or batch and positions), K unique tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE_INDEX = -100  # the label of a position that has no loss, as in PyTorch


@dataclass(frozen=True)
class SparseTargets:
    """Token ids [..., K] and their weights [..., K]; padding has id 0 and weight 0.

    Weights need not sum to 1 (top-k keeps less mass), and an id may occur more than once: its weights add up.
    """

    ids: Tensor  # int64 [..., K]
    weights: Tensor  # floating [..., K]

    def __post_init__(self) -> None:
        if self.ids.shape != self.weights.shape:
            raise ValueError(f"ids {tuple(self.ids.shape)} and weights {tuple(self.weights.shape)} differ in shape")

    def __getitem__(self, places: slice | Tensor) -> SparseTargets:
        """Those at some places of the first dimension."""
        return SparseTargets(self.ids[places], self.weights[places])

    __iter__ = None  # without a length, Python would call __getitem__ for ever

    def to_dense(self, vocab_size: int) -> Tensor:
        """Weights as a dense [..., V] tensor; weights of repeated ids add up (`scatter_add`)."""
        dense = self.weights.new_zeros(*self.ids.shape[:-1], vocab_size)
        return dense.scatter_add_(-1, self.ids, self.weights)

    @property
    def mass(self) -> Tensor:
        """Sum of the weights, [...]."""
        return self.weights.sum(-1)

    @property
    def num_unique(self) -> Tensor:
        """Number of distinct ids with a non-zero weight, int64 [...]."""
        ids = torch.where(self.weights != 0, self.ids, -1).sort(-1).values
        first = torch.ones_like(ids, dtype=torch.bool)
        first[..., 1:] = ids[..., 1:] != ids[..., :-1]
        return (first & (ids >= 0)).sum(-1)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> SparseTargets:
        """The same targets on another device."""
        return SparseTargets(
            self.ids.to(device, non_blocking=non_blocking), self.weights.to(device, non_blocking=non_blocking)
        )

    def pin_memory(self) -> SparseTargets:
        """The same targets in page-locked memory, from which a GPU copies while it computes."""
        return SparseTargets(self.ids.pin_memory(), self.weights.pin_memory())

    def reshape(self, *leading: int) -> SparseTargets:
        """The same targets with another leading shape."""
        num = self.ids.shape[-1]
        return SparseTargets(self.ids.reshape(*leading, num), self.weights.reshape(*leading, num))
