"""Llamas of random weights for the benchmarks, random windows for them, and the work of a pass over those.

The work is that of the model's matrix products: 2 FLOP for each weight and token, the output head among them, and
2·D·T for each layer and token of causal attention over T positions, which needs half of the scores. A backward pass is
twice a forward pass; what activation checkpointing computes again does not count (so shares are MFU).
Source: Chowdhery et al., "PaLM", appendix B, halved for causal attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rskd import SparseTargets
from rskd.cache.loader import CacheBatch


@dataclass(frozen=True)
class Shape:
    """The size of a Llama whose head is tied to the embedding."""

    hidden: int
    layers: int
    vocab: int

    def config(self) -> LlamaConfig:
        """Heads of 64, about a third as many for keys and values."""
        heads = max(1, self.hidden // 64)
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.hidden * 8 // 3,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=max(n for n in range(1, max(1, heads // 3) + 1) if heads % n == 0),
            vocab_size=self.vocab,
            tie_word_embeddings=True,
        )

    def model(self) -> LlamaForCausalLM:
        """One of this shape with random weights."""
        return LlamaForCausalLM(self.config())

    def body_flops(self, parameters: int, seq_len: int) -> int:
        """FLOP of a forward pass a token, but for the output head, of a model with so many parameters."""
        return 2 * (parameters - self.vocab * self.hidden) + 2 * self.layers * self.hidden * seq_len

    def head_flops(self) -> int:
        """FLOP of the output head a token."""
        return 2 * self.vocab * self.hidden

    def training_flops(self, parameters: int, seq_len: int) -> int:
        """FLOP of a forward and a backward pass a token."""
        return 3 * (self.body_flops(parameters, seq_len) + self.head_flops())


def make_batch(shape: Shape, rows: int, seq_len: int, num_unique: int) -> CacheBatch:
    """Random windows with `num_unique` targets at each position."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.vocab, (rows, seq_len + 1), generator=generator)
    entries = torch.randint(shape.vocab, (rows, seq_len, num_unique), generator=generator)
    targets = SparseTargets(entries, torch.full(entries.shape, 1 / num_unique))
    return CacheBatch(0, 0, torch.arange(rows), ids[:, :-1], ids[:, 1:], targets, {})
