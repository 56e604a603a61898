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
        logits = self.finish(torch.nn.functional.linear(hidden, self.weight, self.bias))
        if vocab_size is not None and vocab_size < logits.shape[-1]:
            logits[..., vocab_size:] = -torch.inf
        return logits

    def project(self, hidden: Tensor, out: Tensor) -> Tensor:
        """`linear(hidden, weight, bias)` of `hidden` [R, D], written into `out` [R, V] of the same dtype."""
        if self.bias is None:
            return torch.mm(hidden, self.weight.T, out=out)
        return torch.addmm(self.bias, hidden, self.weight.T, out=out)

    def finish(self, projected: Tensor) -> Tensor:
        """Logits of what `project` gives: float32 at least, soft-capped."""
        logits = projected.to(torch.promote_types(projected.dtype, torch.float32))
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def narrow(self, vocab_size: int | None) -> OutputHead:
        """The head of the first `vocab_size` ids alone: the same distribution as masking the others, for less work."""
        if vocab_size is None or vocab_size == len(self.weight):
            return self
        if not 0 < vocab_size <= len(self.weight):
            raise ValueError(f"vocab_size must be within 1..{len(self.weight)}, the rows of the head, got {vocab_size}")
        return OutputHead(self.weight[:vocab_size], None if self.bias is None else self.bias[:vocab_size], self.softcap)
