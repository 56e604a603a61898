"""The output head of a language model: hidden states to logits.

Shapes: R rows, D hidden, V rows of the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor


class Head(Protocol):
    """An output head whose logits are made in two steps, so that few of them exist at a time."""

    @property
    def num_ids(self) -> int:
        """V."""
        ...

    def narrow(self, vocab_size: int | None) -> Self:
        """The head of the first `vocab_size` ids alone."""
        ...

    def products(self, hidden: Tensor, chunk_rows: int) -> Iterator[Tensor]:
        """Products [r, V] of `chunk_rows` rows of `hidden` [R, D] at a time; valid until the next are asked for."""
        ...

    def finish(self, products: Tensor) -> Tensor:
        """Logits of some of the products, float32 at least."""
        ...


def soft_capped(products: Tensor, softcap: float | None) -> Tensor:
    """`products`, float32 at least, as they are or `softcap·tanh(products / softcap)`."""
    logits = products.to(torch.promote_types(products.dtype, torch.float32))
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


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

    @property
    def num_ids(self) -> int:
        """V."""
        return len(self.weight)

    def products(self, hidden: Tensor, chunk_rows: int) -> Iterator[Tensor]:
        """`linear(hidden, weight, bias)` of `chunk_rows` rows of `hidden` [R, D] at a time, all in one buffer."""
        buffer = hidden.new_empty(min(len(hidden), chunk_rows), len(self.weight))
        for rows in hidden.split(chunk_rows):
            out = buffer[: len(rows)]
            if self.bias is None:
                yield torch.mm(rows, self.weight.T, out=out)
            else:
                yield torch.addmm(self.bias, rows, self.weight.T, out=out)

    def finish(self, products: Tensor) -> Tensor:
        """Logits of some of the products: float32 at least, soft-capped."""
        return soft_capped(products, self.softcap)

    def narrow(self, vocab_size: int | None) -> OutputHead:
        """The head of the first `vocab_size` ids alone: the same distribution as masking the others, for less work."""
        if vocab_size is None or vocab_size == len(self.weight):
            return self
        if not 0 < vocab_size <= len(self.weight):
            raise ValueError(f"vocab_size must be within 1..{len(self.weight)}, the rows of the head, got {vocab_size}")
        return OutputHead(self.weight[:vocab_size], None if self.bias is None else self.bias[:vocab_size], self.softcap)
