"""Sparse targets from a teacher's distribution p: two unbiased samplers and two biased baselines.

    logits ─► softmax ─► sums of blocks ─► running sum over blocks ─► block of each point ─► id within the block
              float32    float32           float64 (Distribution)     pick                   float64 running sum

A row costs a float32 softmax and one more pass, the sums of its blocks; only the blocks that a point hits are summed
id by id, or all of them, once for all samplings, where points are many for the vocabulary. float64 logits stay in
float64 throughout: with them the same code is its own reference.

Rounding. What is sampled is a p' that is p but for float32: each p'_i within about 1e-6 of itself, half the sum of
|p'_i - p_i| about 5e-8, so E[w] = p to well below what any number of draws could show. The running sum is off by some
1e-8, and so is each id's place in it: at equal uniforms 2e-4 of the draws (V = 49,152; 1e-3 at 262,144) fall on the
neighbour of the id that float64 gives. Counts keep their promises for p': they sum to N, and each is the floor or the
ceiling of N·p_i but where N·p_i is within N·1e-6·p_i of a whole number. An id without mass is never drawn.

Shapes: ... any leading shape, R rows, V vocabulary, N sampling rounds, K unique tokens.
Source: Anshumann et al., "Sparse Logit Sampling" (the paper), section 3.4; systematic sampling is rskd's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from rskd.errors import ConfigError, NonFiniteLogitsError
from rskd.rng import uniforms
from rskd.sparse_targets import SparseTargets

BLOCK = 128  # ids that are summed before the running sum: part of what makes draws repeat
SLICE_BYTES_CPU = 2 * 2**20  # of rows in work at once: they stay in the processor's cache from one pass to the next
SLICE_ROWS_GPU = 128  # about one a multiprocessor
_FLOAT32_BYTES, _FLOAT64_BYTES = 4, 8

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

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Sampling:
        """The options that a `sampling` section, of a configuration or a manifest, has among others."""
        return cls(**{field.name: section[field.name] for field in fields(cls)})

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
    u = points(sampling, flat_keys(keys, logits.shape[:-1], logits.device))
    size = rows_per_slice(logits.shape[-1], [sampling], logits.device)
    totals, picks = RowResults(len(rows)), RowResults(len(rows))
    for start in range(0, max(len(rows), 1), size):
        distribution = Distribution.of(rows[start : start + size])
        totals.put(start, distribution.total)
        picks.put(start, *pick(distribution, sampling, u[start : start + size]))
    require_distributions(*totals.tensors)
    return merge(*picks.tensors).targets(sampling).reshape(*logits.shape[:-1])


def flat_keys(keys: Tensor | None, leading_shape: torch.Size, device: torch.device) -> Tensor:
    """Keys as int64 [R] on `device`; None means 0..R-1. Raises ValueError if they do not have `leading_shape`."""
    if keys is None:
        return torch.arange(leading_shape.numel(), device=device)
    if keys.shape != leading_shape or keys.dtype != torch.int64:
        raise ValueError(f"keys must be int64 {tuple(leading_shape)}, got {keys.dtype} {tuple(keys.shape)}")
    return keys.reshape(-1).to(device)


def rows_per_slice(vocab_size: int, samplings: Iterable[Sampling], device: torch.device) -> int:
    """Rows to sample from at once. Draws do not depend on it; speed and memory do."""
    if device.type != "cpu":
        return SLICE_ROWS_GPU
    draws = max((sampling.num_samples for sampling in samplings), default=0)
    summed = vocab_size if _sums_whole_rows(draws, vocab_size) else BLOCK * draws
    return max(1, SLICE_BYTES_CPU // (_FLOAT32_BYTES * vocab_size + _FLOAT64_BYTES * summed))


def _sums_whole_rows(num_points: int, vocab_size: int) -> bool:
    """Whether so many points hit blocks that all of a row are summed sooner."""
    return num_points * BLOCK > vocab_size


def concatenate(parts: list[Drawn]) -> Drawn:
    """Rows of several batches as one, padded to the widest."""
    width = max(part.ids.shape[1] for part in parts)
    padded = [[F.pad(tensor, (0, width - tensor.shape[1])) for tensor in (part.ids, part.values)] for part in parts]
    return Drawn(torch.cat([ids for ids, _ in padded]), torch.cat([values for _, values in padded]))


@dataclass(frozen=True)
class Distribution:
    """softmax(power·logits) of R rows: `masses`, normalised by their sum `total`."""

    logits: Tensor  # [R, V], as given
    masses: Tensor  # [R, ⌈V/BLOCK⌉, BLOCK] float32, or float64 where the logits are; 0 beyond V
    block_cdf: Tensor  # float64 [R, ⌈V/BLOCK⌉], running sum of the blocks' sums
    power: float

    @classmethod
    def of(cls, logits: Tensor, power: float = 1.0) -> Distribution:
        """The distribution of `logits` [R, V] of any floating dtype."""
        padding = -logits.shape[-1] % BLOCK
        padded = F.pad(logits, (0, padding), value=-torch.inf) if padding else logits
        padded = padded.to(torch.promote_types(logits.dtype, torch.float32))
        if power != 1:
            padded = _raised(padded - padded.amax(-1, keepdim=True), power)
        masses = padded.softmax(-1).unflatten(1, (-1, BLOCK))
        return cls(logits, masses, masses.sum(-1).double().cumsum(-1), power)

    @property
    def total(self) -> Tensor:
        """Sum of the masses, float64 [R, 1]: 1 but for rounding, or NaN where the logits have no distribution."""
        return self.block_cdf[:, -1:]

    def probabilities(self, ids: Tensor) -> Tensor:
        """p at `ids` [R, K], float64, within 1e-6 of itself: its masses have the precision of the logits."""
        return self.masses.flatten(1).gather(1, ids).double() / self.total

    def log_probabilities(self, ids: Tensor) -> Tensor:
        """log p at `ids` [R, K], float64, within 1e-6: the likeliest id's, and the float64 distance of the logits."""
        behind = self.logits.gather(1, ids).double() - self.logits.amax(-1, keepdim=True)
        return _raised(behind, self.power) + (self.masses.amax((1, 2))[:, None].double() / self.total).log()

    def entropy(self) -> Tensor:
        """-Σ p log p in nats, float64 [R], within about 1e-6."""
        total = self.total.squeeze(1)
        return total.log() + torch.special.entr(self.masses).sum(-1).double().sum(-1) / total

    def invert(self, u: Tensor) -> Tensor:
        """Ids int64 [R, N] whose share of the cumulative distribution holds `u` float64 [R, N], in [0, 1)."""
        aim = _below(u * self.total, self.total)
        last = self.block_cdf.shape[1] - 1  # nothing goes beyond, nor beyond the last id, but where total is NaN
        block = torch.searchsorted(self.block_cdf, aim, right=True).clamp_(max=last)
        start = F.pad(self.block_cdf, (1, 0)).gather(1, block)
        share = (aim - start) / (self.block_cdf.gather(1, block) - start)
        find = self._find_in_row if _sums_whole_rows(u.shape[1], self.logits.shape[-1]) else self._find_in_blocks
        return (block * BLOCK + find(block, share)).clamp_(max=self.logits.shape[-1] - 1)

    # The end of a block's running sum may be off `block_cdf` by rounding: hence points as shares of their blocks.

    def _find_in_blocks(self, block: Tensor, share: Tensor) -> Tensor:
        """Places within `block` [R, N] of the points at `share` of its mass, by summing the blocks that are hit."""
        hit = self.masses[torch.arange(len(block), device=block.device)[:, None], block]
        within = hit.cumsum(-1, dtype=torch.float64)
        end = within[..., -1:]
        return torch.searchsorted(within, _below(share[..., None] * end, end), right=True)[..., 0]

    def _find_in_row(self, block: Tensor, share: Tensor) -> Tensor:
        """The same places, by bisection of sums that all samplings share."""
        within, first = self._within_blocks, block * BLOCK
        end = within.gather(1, first + (BLOCK - 1))
        aim = _below(share * end, end)
        step, place = BLOCK // 2, first
        while step:
            place = place + step * (within.gather(1, place + (step - 1)) <= aim)
            step //= 2
        return place - first

    @cached_property
    def _within_blocks(self) -> Tensor:
        """Running sums within each block, float64 [R, ⌈V/BLOCK⌉·BLOCK]."""
        return self.masses.cumsum(-1, dtype=torch.float64).flatten(1)


class RowResults:
    """Tensors with results for each of R rows, which come a slice of rows at a time.

    They exist from the first slice on. Small tensors kept from every slice, between the large ones that it frees,
    would leave the heap full of holes: memory would grow with R.
    """

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self.tensors: tuple[Tensor, ...] = ()

    def put(self, start: int, *parts: Tensor) -> None:
        """Keep the `parts` [r, ...] of the rows from `start` on."""
        if not self.tensors:
            self.tensors = tuple(part.new_empty(self._num_rows, *part.shape[1:]) for part in parts)
        for tensor, part in zip(self.tensors, parts):
            tensor[start : start + len(part)] = part


def require_distributions(total: Tensor) -> None:
    """NonFiniteLogitsError if a row of `Distribution.total` is not finite. Once for many slices: a GPU waits for it."""
    if not total.isfinite().all():
        raise NonFiniteLogitsError


def draw(distribution: Distribution, sampling: Sampling, keys: Tensor) -> Drawn:
    """Draw from R rows; `keys` int64 [R]. Raises ValueError for a row without a distribution."""
    require_distributions(distribution.total)
    return merge(*pick(distribution, sampling, points(sampling, keys)))


def points(sampling: Sampling, keys: Tensor) -> Tensor:
    """Where R rows are drawn from their cumulative distributions, float64 [R, N] in [0, 1); [R, 0] for top_k, top_p."""
    if sampling.method == "systematic":
        steps = torch.arange(sampling.num_samples, device=keys.device)
        return (steps + uniforms(keys, 1, seed=sampling.seed)) / sampling.num_samples
    return uniforms(keys, sampling.num_samples if sampling.method == "random" else 0, seed=sampling.seed)


def pick(distribution: Distribution, sampling: Sampling, u: Tensor) -> tuple[Tensor, Tensor]:
    """Ids int64 [R, N] at the points `u`, in any order, some repeated; and what each counts for, as `Drawn.values`."""
    if sampling.method in ("top_k", "top_p"):
        return _top(distribution, sampling)
    if sampling.draws_counts:
        ids = distribution.invert(u)
        return ids, torch.ones_like(ids)
    ids = Distribution.of(distribution.logits, power=sampling.temperature).invert(u)
    log_ratio = (1 - sampling.temperature) * distribution.logits.gather(1, ids).double()  # of p to q, less a constant
    return ids, log_ratio.softmax(-1).float()


def merge(ids: Tensor, shares: Tensor) -> Drawn:
    """What was picked, [R, N] each: ids ascending, repeated ones added up, those that count for nothing dropped."""
    ids, order = ids.masked_fill(shares == 0, torch.iinfo(ids.dtype).max).sort(-1)
    slot = F.pad(ids[:, 1:] != ids[:, :-1], (1, 0)).cumsum(-1)
    values = torch.zeros_like(shares).scatter_add_(1, slot, shares.gather(1, order))
    width = int((values > 0).sum(-1).max()) if len(values) else 0
    ids, values = torch.zeros_like(ids).scatter_(1, slot, ids)[:, :width], values[:, :width]
    return Drawn(ids.masked_fill(values == 0, 0), values)


def _raised(logits: Tensor, power: float) -> Tensor:
    """power·logits, where -inf (a masked id) stays -inf at power 0 too."""
    return logits if power == 1 else torch.where(logits == -torch.inf, logits, power * logits)


def _below(aim: Tensor, bound: Tensor) -> Tensor:
    """Points that rounding put on the end of their interval, back inside it: so that no id of zero mass is drawn."""
    return torch.minimum(aim, torch.nextafter(bound, torch.zeros_like(bound)))


def _top(distribution: Distribution, sampling: Sampling) -> tuple[Tensor, Tensor]:
    assert sampling.k is not None  # Sampling checks it
    ids = distribution.logits.topk(min(sampling.k, distribution.logits.shape[-1])).indices
    probs = distribution.probabilities(ids)
    if sampling.p is not None and sampling.method == "top_p":
        probs = torch.where(probs.cumsum(-1) - probs < sampling.p, probs, 0)
    return ids, probs.float()
