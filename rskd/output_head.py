"""The output head of a language model: hidden states to logits.

Shapes: D hidden, V rows of the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OutputHead:
    """What turns hidden states into logits: `softcap·tanh((hidden @ weight.T + bias) / softcap)`."""

    weight: Tensor  # [V, D]
    bias: Tensor | None = None  # [V]
    softcap: float | None = None

    def logits(self, hidden: Tensor, vocab_size: int | None = None) -> Tensor:
        """Logits [..., V] of `hidden` [..., D], float32 at least; ids from `vocab_size` on are -inf (padding)."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        if vocab_size is not None and vocab_size < logits.shape[-1]:
            logits[..., vocab_size:] = -torch.inf
        return logits

    def narrow(self, vocab_size: int | None) -> OutputHead:
        """The head of the first `vocab_size` ids alone: the same distribution as masking the others, for less work."""
        if vocab_size is None or vocab_size == len(self.weight):
            return self
        if not 0 < vocab_size <= len(self.weight):
            raise ValueError(f"vocab_size must be within 1..{len(self.weight)}, the rows of the head, got {vocab_size}")
        return OutputHead(self.weight[:vocab_size], None if self.bias is None else self.bias[:vocab_size], self.softcap)
