"""Figure 2a: what each method makes of one known distribution, p_i ∝ 1/i.

    log p [V], a key a round ─► targets ─► effective target [R, V] ─► pairs of rounds ─► bias², variance, error

The effective target is what a student of any capacity converges to on average: the targets over their own sum (paper,
A.4), with the rest of top-k's mass where its residual puts it. (A ghost token prescribes nothing about single ids
outside the top k: it has no effective target of its own.) Two rounds are independent, so that for a pair a, b of them

    bias² = E⟨a - p, b - p⟩    variance = E|a - b|²/2    mean squared error = E|a - p|² = bias² + variance

each is estimated without bias, and with a standard error over the pairs.

Shapes: R rounds, V vocabulary, H ranks of the figure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rskd.synthetic.mean import Mean
from rskd.synthetic.methods import Method, sparse_methods
from rskd.teacher.sampling import Sampling, sample_targets

FIGURE_RANKS = 50  # of the paper's figure
_PAIRS_PER_CHUNK = 8  # dense rounds in memory at once: 2 · 32 · V values


@dataclass(frozen=True)
class Estimate:
    """What the effective targets of one method are on average."""

    unique_tokens: Mean
    top1_bias: Mean  # E[w_1] - p_1
    head_bias: Mean  # the same of the k likeliest ids together
    bias_squared: Mean
    variance: Mean
    squared_error: Mean
    ranks: list[Mean]  # E[w_i] of the first H ranks


def zipf_methods(*, k: int, num_samples: int, seed: int) -> dict[str, Method]:
    """The methods with an effective target, both samplers with `num_samples` rounds; and random ones of 6.1."""
    methods = sparse_methods(k=k, random_rounds=num_samples, systematic_rounds=num_samples, seed=seed)
    del methods["top_k + ghost token"]
    others = {
        f"random, t = {t:g}": Method("sparse_kd", Sampling("random", num_samples, temperature=t, seed=seed))
        for t in (0.0, 0.8, 1.2)
    }
    return methods | others


def zipf_log_probs(vocab_size: int) -> Tensor:
    """log p float32 [V] of p_i ∝ 1/i."""
    return (-torch.arange(1, vocab_size + 1, dtype=torch.float64).log()).log_softmax(0).float()


def estimate(
    log_probs: Tensor, method: Method, *, k: int, rounds: int, advance: Callable[[int], None] = lambda rounds: None
) -> Estimate:
    """What `method` makes of the distribution of `log_probs` [V], whose head are its first `k` ids.

    `rounds` is even; `advance` hears of rounds done.
    """
    p = log_probs.exp()
    chunks = []
    for keys in torch.arange(rounds).split(2 * _PAIRS_PER_CHUNK):
        unique, targets = effective_targets(log_probs, method, keys)
        chunks.append(_values(targets, p, k) | {"unique": unique})
        advance(len(keys))
    values = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return Estimate(
        unique_tokens=Mean.of(values["unique"]),
        top1_bias=Mean.of(values["ranks"][:, 0] - p[0]),
        head_bias=Mean.of(values["head"] - p[:k].sum()),
        bias_squared=Mean.of(values["bias_squared"]),
        variance=Mean.of(values["variance"]),
        squared_error=Mean.of(values["squared_error"]),
        ranks=[Mean.of(rank) for rank in values["ranks"].T],
    )


def effective_targets(log_probs: Tensor, method: Method, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Unique tokens int64 [R] and effective targets float32 [R, V] of rounds with these `keys` [R].

    A label, where the residual needs one, is drawn from the distribution itself.
    """
    logits = log_probs.expand(len(keys), -1)
    drawn = method.draw(logits, keys)
    dense = drawn.to_dense(logits.shape[1])
    rest = 1 - dense.sum(-1, keepdim=True)
    if method.residual == "smooth":
        dense += rest / dense.shape[1]
    elif method.residual == "label":
        label = sample_targets(logits, method="random", num_samples=1, keys=keys)
        dense.scatter_add_(1, label.ids, rest)
    return drawn.num_unique, dense.div_(dense.sum(-1, keepdim=True))


def _values(targets: Tensor, p: Tensor, k: int) -> dict[str, Tensor]:
    """What is averaged, of effective targets [R, V]: over the rounds, or over pairs of them."""
    first, second = targets[0::2] - p, targets[1::2] - p
    return {
        "ranks": targets[:, :FIGURE_RANKS],
        "head": targets[:, :k].sum(-1),
        "bias_squared": (first * second).sum(-1),
        "variance": (first - second).square().sum(-1) / 2,
        "squared_error": (first.square().sum(-1) + second.square().sum(-1)) / 2,
    }
