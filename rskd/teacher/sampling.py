"""Sparse targets from a teacher's distribution p: two unbiased samplers and two biased baselines.

    logits ─► exp in float64 ─► sums of blocks ─► running sum over blocks ─► block of each point ─► id within the block
    Distribution                                                             draw

Only the blocks that a point hits are summed id by id. A row costs one float64 exp per id and a few numbers per draw.
Everything is float64, so a systematic count is the floor or the ceiling of N·p_i at every id, not merely about so.

Shapes: ... any leading shape, R rows, V vocabulary, N sampling rounds, K unique tokens.
Source: Anshumann et al., "Sparse Logit Sampling" (the paper), section 3.4; systematic sampling is rskd's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from rskd.errors import ConfigError
from rskd.rng import uniforms
from rskd.sparse_targets import SparseTargets

BLOCK = 128  # ids that are summed before the running sum: part of what makes draws repeat
CHUNK_BYTES_CPU = 32 * 2**20  # of the rows in work at once; malloc does not recycle more, which takes twice the time
CHUNK_BYTES_GPU = 512 * 2**20  # fewer rows would leave a GPU waiting for the weights of the head
_FLOAT64_BYTES = 8

Method = Literal["systematic", "random", "top_k", "top_p"]


@dataclass(frozen=True)
class Sampling:
    """How targets are drawn; `sample_targets` documents the options. Options that the method does not use are ignored.

    Raises ValueError for an option out of range, ConfigError for systematic sampling at another temperature than 1.
    """

    method: Method = "systematic"
    num_samples: int = 22
    temperature: float = 1.0
    k: int | None = None
    p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {self.method!r}")
        if self.method in ("systematic", "random") and self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}")
        if self.method == "systematic" and self.temperature != 1:
            raise ConfigError(
                f"systematic sampling is defined at temperature 1 only, got {self.temperature}: use method random"
            )
        if self.method == "random" and not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be finite and not negative, got {self.temperature}")
        if self.method in ("top_k", "top_p") and (self.k is None or self.k < 1):
            raise ValueError(f"{self.method} needs k, the most tokens to keep, of at least 1, got {self.k}")
        if self.method == "top_p" and (self.p is None or not 0 < self.p <= 1):
            raise ValueError(f"top_p needs p, the mass to keep, above 0 and at most 1, got {self.p}")

    @property
    def draws_counts(self) -> bool:
        """Whether weights are counts / num_samples: systematic, and random at temperature 1."""
        return self.method == "systematic" or (self.method == "random" and self.temperature == 1)


@dataclass(frozen=True)
class Drawn:
    """Distinct ids of R rows in ascending order, and their values; padding (id 0, value 0) comes last.

    Values are int64 counts (`Sampling.draws_counts`), float32 weights (random elsewhere) or float32 p_i (top_k, top_p).
    """

    ids: Tensor  # int64 [R, K]
    values: Tensor  # [R, K]

    def targets(self, sampling: Sampling) -> SparseTargets:
        """As sparse targets: counts become count / num_samples."""
        values = self.values.double() / sampling.num_samples if sampling.draws_counts else self.values
        return SparseTargets(self.ids, values.float())


def sample_targets(
    logits: Tensor,
    *,
    method: Method = "systematic",
    num_samples: int = 22,
    temperature: float = 1.0,
    k: int | None = None,
    p: float | None = None,
    seed: int = 0,
    keys: Tensor | None = None,
) -> SparseTargets:
    """Sparse targets [..., K] of the distribution softmax(logits) for `logits` [..., V] of any floating dtype.

    - systematic: the points (j+u)/N, j = 0..N-1, against the cumulative distribution; weight count/N. E[w] = p, counts
      are ⌊N·p_i⌋ or ⌈N·p_i⌉ and sum to N. One uniform number u a row.
    - random: N independent draws from q ∝ p^temperature; weight ∝ count·p_i/q_i, normalised over the draws. Unbiased at
      temperature 1 (then count/N), consistent with a bias of order 1/N elsewhere. Temperature 0 is uniform.
    - top_k: the k likeliest ids with weight p_i, not renormalised (biased). Ties fall as `torch.topk` lets them.
    - top_p: of those k, the fewest with mass >= p, weight p_i (biased).

    `keys` int64 [...] (default 0..n-1 in order) and `seed` determine the draws: a row's targets do not depend on its
    batch. Ids with a logit of -inf are never drawn. K is the most distinct ids of any row; ids ascend.

    Raises ValueError (ConfigError for systematic at another temperature), also for NaN, +inf or rows all -inf.
    """
    sampling = Sampling(method, num_samples, temperature, k, p, seed)
    rows = logits.flatten(0, -2) if logits.ndim > 1 else logits.unsqueeze(0)
    keys = flat_keys(keys, logits.shape[:-1], logits.device)
    chunk = rows_per_chunk(logits.shape[-1], [sampling], logits.device)
    parts = [
        draw(Distribution.of(rows[start : start + chunk]), sampling, keys[start : start + chunk])
        for start in range(0, max(len(rows), 1), chunk)
    ]
    return concatenate(parts).targets(sampling).reshape(*logits.shape[:-1])


def flat_keys(keys: Tensor | None, leading_shape: torch.Size, device: torch.device) -> Tensor:
    """Keys as int64 [R] on `device`; None means 0..R-1. Raises ValueError if they do not have `leading_shape`."""
    if keys is None:
        return torch.arange(leading_shape.numel(), device=device)
    if keys.shape != leading_shape or keys.dtype != torch.int64:
        raise ValueError(f"keys must be int64 {tuple(leading_shape)}, got {keys.dtype} {tuple(keys.shape)}")
    return keys.reshape(-1).to(device)


def rows_per_chunk(vocab_size: int, samplings: Iterable[Sampling], device: torch.device) -> int:
    """Rows whose logits, float64 terms and the blocks that their draws hit fit in the device's CHUNK_BYTES."""
    draws = max((sampling.num_samples for sampling in samplings), default=0)
    budget = CHUNK_BYTES_CPU if device.type == "cpu" else CHUNK_BYTES_GPU
    return max(1, budget // (2 * _FLOAT64_BYTES * (vocab_size + BLOCK * draws)))


def concatenate(parts: list[Drawn]) -> Drawn:
    """Rows of several chunks as one, padded to the widest."""
    width = max(part.ids.shape[1] for part in parts)
    padded = [[F.pad(tensor, (0, width - tensor.shape[1])) for tensor in (part.ids, part.values)] for part in parts]
    return Drawn(torch.cat([ids for ids, _ in padded]), torch.cat([values for _, values in padded]))


@dataclass(frozen=True)
class Distribution:
    """softmax of R rows of logits, unnormalised, in float64: p_i = terms_i / total."""

    logits: Tensor  # [R, V], as given
    peak: Tensor  # float64 [R, 1], the greatest logit
    terms: Tensor  # float64 [R, ⌈V/BLOCK⌉, BLOCK], exp(logit - peak), padded with 0
    block_cdf: Tensor  # float64 [R, ⌈V/BLOCK⌉], running sum of the blocks' sums

    @classmethod
    def of(cls, logits: Tensor, power: float = 1.0) -> Distribution:
        """The distribution q ∝ softmax(logits)^power of `logits` [R, V]."""
        num_rows, vocab_size = logits.shape
        num_blocks = -(-vocab_size // BLOCK)
        terms = torch.empty(num_rows, num_blocks * BLOCK, dtype=torch.float64, device=logits.device)
        terms[:, vocab_size:] = -torch.inf
        scaled = terms[:, :vocab_size].copy_(logits)
        peak = scaled.amax(-1, keepdim=True)
        if not peak.isfinite().all():  # amax hands NaN on
            raise ValueError("logits must be finite or -inf, with one finite in each row: check the teacher's dtype")
        scaled.sub_(peak)
        if power != 1:
            scaled.mul_(power).masked_fill_(logits == -torch.inf, -torch.inf)
        terms = terms.exp_().view(num_rows, num_blocks, BLOCK)
        return cls(logits, peak, terms, terms.sum(-1).cumsum(-1))

    @property
    def total(self) -> Tensor:
        """Sum of the terms, float64 [R, 1]."""
        return self.block_cdf[:, -1:]

    def probabilities(self, ids: Tensor) -> Tensor:
        """p at `ids` [R, K], float64."""
        return self.terms.flatten(1).gather(1, ids) / self.total

    def log_probabilities(self, ids: Tensor) -> Tensor:
        """log p at `ids` [R, K], float64."""
        return self.logits.gather(1, ids).double() - self.peak - self.total.log()

    def entropy(self) -> Tensor:
        """-Σ p log p in nats, float64 [R]."""
        total = self.total.squeeze(1)
        return total.log() + torch.special.entr(self.terms).sum((1, 2)) / total

    def invert(self, u: Tensor) -> Tensor:
        """Ids int64 [R, N] whose share of the cumulative distribution holds `u` float64 [R, N], in [0, 1)."""
        points = _below(u * self.total, self.total)
        block = torch.searchsorted(self.block_cdf, points, right=True)
        start = F.pad(self.block_cdf, (1, 0)).gather(1, block)
        within = self.terms[torch.arange(len(block), device=block.device)[:, None], block].cumsum(-1)
        rest = _below((points - start)[..., None], within[..., -1:])
        return block * BLOCK + torch.searchsorted(within, rest, right=True)[..., 0]


def draw(distribution: Distribution, sampling: Sampling, keys: Tensor) -> Drawn:
    """Draw from R rows; `keys` int64 [R]."""
    if sampling.method in ("top_k", "top_p"):
        return _top(distribution, sampling)
    num_samples = sampling.num_samples
    if sampling.method == "systematic":
        steps = torch.arange(num_samples, device=keys.device)
        return _accumulate(distribution.invert((steps + uniforms(keys, 1, seed=sampling.seed)) / num_samples))
    u = uniforms(keys, num_samples, seed=sampling.seed)
    if sampling.temperature == 1:
        return _accumulate(distribution.invert(u).sort(-1).values)
    ids = Distribution.of(distribution.logits, power=sampling.temperature).invert(u).sort(-1).values
    log_ratio = (1 - sampling.temperature) * distribution.log_probabilities(ids)  # of p to q, less a constant
    return _accumulate(ids, log_ratio.softmax(-1).float())


def _below(points: Tensor, bound: Tensor) -> Tensor:
    """Points that rounding put on the end of their interval, back inside it: so that no id of zero mass is drawn."""
    return torch.minimum(points, torch.nextafter(bound, torch.zeros_like(bound)))


def _accumulate(ids: Tensor, shares: Tensor | None = None) -> Drawn:
    """Add up repeated draws: ascending `ids` [R, N] with what each draw counts for, by default 1."""
    first = F.pad(ids[:, 1:] != ids[:, :-1], (1, 0), value=True)
    slot = first.cumsum(-1) - 1
    width = int(slot[:, -1].max()) + 1 if len(slot) else 0
    shares = torch.ones_like(ids) if shares is None else shares
    return Drawn(
        ids.new_zeros(len(ids), width).scatter_(1, slot, ids),
        shares.new_zeros(len(ids), width).scatter_add_(1, slot, shares),
    )


def _top(distribution: Distribution, sampling: Sampling) -> Drawn:
    vocab_size = distribution.logits.shape[-1]
    assert sampling.k is not None  # Sampling checks it
    ids = distribution.logits.topk(min(sampling.k, vocab_size)).indices
    probs = distribution.probabilities(ids)
    if sampling.p is not None and sampling.method == "top_p":
        probs = torch.where(probs.cumsum(-1) - probs < sampling.p, probs, 0)
    probs = probs.float()
    ids, order = torch.where(probs > 0, ids, vocab_size).sort(-1)
    width = int((ids < vocab_size).sum(-1).max()) if len(ids) else 0
    ids, order = ids[:, :width], order[:, :width]
    return Drawn(torch.where(ids < vocab_size, ids, 0), probs.gather(1, order))
