"""From hidden states to sparse targets, a few rows at a time: [R, V] logits never exist for all R rows at once.

    hidden ─► chunk of rows ─► products ─► slice of a chunk ─► logits ─► Distribution ─┬─► pick, once a sampling, merge
              one buffer                   in the cache                                └─► statistics

A matrix product is quick from some hundred rows on, the passes after it are quick on what fits in the processor's
cache: hence slices of chunks. Memory is that of CHUNK_ROWS rows of products, in the head's dtype, and a slice's; more
rows add their points and targets alone. Nothing in the loop waits for a GPU.

Draws are the same for equal logits; a matrix product may round differently with another number of rows, so logits, and
at their edges draws, repeat for equally cut batches.

Shapes: ... any leading shape, R rows (all leading dimensions flattened), D hidden, V vocabulary, K unique tokens.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Self

import torch
from torch import Tensor

from rskd.models.output_head import Head, OutputHead
from rskd.sparse_targets import SparseTargets
from rskd.teacher.sampling import (
    Distribution,
    Drawn,
    Method,
    RowResults,
    Sampling,
    flat_keys,
    merge,
    pick,
    points,
    require_distributions,
    rows_per_slice,
)
from rskd.teacher_statistics import STATISTICS, StatisticName

CHUNK_ROWS = 384  # of one matrix product: more gain little


@dataclass(frozen=True)
class Order:
    """What is wanted of each row. As JSON it travels, and equal orders are equal strings."""

    samplings: dict[str, Sampling]
    statistics: tuple[StatisticName, ...] = ()
    vocab_size: int | None = None

    def to_json(self) -> str:
        """Inverse of `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    @functools.cache
    def from_json(cls, text: str) -> Self:
        """The order that `text` was made from."""
        content = json.loads(text)
        samplings = {name: Sampling(**options) for name, options in content["samplings"].items()}
        return cls(samplings, tuple(content["statistics"]), content["vocab_size"])


@dataclass(frozen=True)
class SampledRows:
    """What one pass over the rows gave."""

    drawn: dict[str, Drawn]  # by the name of the sampling
    statistics: dict[str, Tensor]  # [R]: label_logprob, entropy float32 (nats), top1 int64


def sample_from_hidden(
    hidden: Tensor,
    lm_head_weight: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    vocab_size: int | None = None,
    method: Method = "systematic",
    num_samples: int = 22,
    temperature: float = 1.0,
    k: int | None = None,
    p: float | None = None,
    seed: int = 0,
    keys: Tensor | None = None,
) -> SparseTargets:
    """Sparse targets [..., K] of a teacher's hidden states.

    `sample_targets(softcap * tanh((hidden @ lm_head_weight.T + bias) / softcap), ...)`, in chunks of rows.

    `hidden` [..., D] and `lm_head_weight` [V, D] have one dtype; logits are float32 from there on. Ids from
    `vocab_size` on are padding and never drawn. The other options, and the errors, are those of `sample_targets`.
    """
    sampling = Sampling(method, num_samples, temperature, k, p, seed)
    head = OutputHead(lm_head_weight, bias, softcap)
    rows = sample_rows(hidden, head, {"": sampling}, keys, vocab_size=vocab_size)
    return rows.drawn[""].targets(sampling).reshape(*hidden.shape[:-1])


@torch.no_grad()
def sample_rows(
    hidden: Tensor,
    head: Head,
    samplings: Mapping[str, Sampling],
    keys: Tensor | None = None,
    *,
    vocab_size: int | None = None,
    labels: Tensor | None = None,
    statistics: Iterable[StatisticName] = (),
) -> SampledRows:
    """Several samplings and statistics of `hidden` [..., D] from one pass over its logits.

    `labels` int64 [...] are the next tokens, which label_logprob needs. `keys` as in `sample_targets`.
    Raises ValueError for an unknown statistic, missing labels, a `vocab_size` beyond the head, non-finite logits.
    """
    names = tuple(statistics)
    if unknown := set(names) - STATISTICS.keys():
        raise ValueError(f"statistics must be of {', '.join(STATISTICS)}, got {', '.join(sorted(unknown))}")
    if "label_logprob" in names and labels is None:
        raise ValueError("label_logprob needs labels: pass the next tokens")
    head = head.narrow(vocab_size)
    rows = hidden.reshape(-1, hidden.shape[-1])
    keys = flat_keys(keys, hidden.shape[:-1], hidden.device)
    labels = None if labels is None else labels.reshape(-1)
    u = {name: points(sampling, keys) for name, sampling in samplings.items()}
    totals = RowResults(len(rows))
    picks = {name: RowResults(len(rows)) for name in samplings}
    measured = {name: RowResults(len(rows)) for name in names}
    for start, logits in _slices(rows, head, rows_per_slice(head.num_ids, samplings.values(), rows.device)):
        distribution, part = Distribution.of(logits), slice(start, start + len(logits))
        totals.put(start, distribution.total)
        for name, sampling in samplings.items():
            picks[name].put(start, *pick(distribution, sampling, u[name][part]))
        for name in names:
            measured[name].put(start, _measure(name, distribution, None if labels is None else labels[part]))
    require_distributions(*totals.tensors)
    return SampledRows(
        {name: merge(*results.tensors) for name, results in picks.items()},
        {name: results.tensors[0] for name, results in measured.items()},
    )


def _slices(hidden: Tensor, head: Head, size: int) -> Iterator[tuple[int, Tensor]]:
    """Logits of `size` rows of `hidden` [R, D] at a time, with the first row; valid until the next are asked for."""
    for chunk, products in enumerate(head.products(hidden, CHUNK_ROWS)):
        for start in range(0, max(len(products), 1), size):
            yield chunk * CHUNK_ROWS + start, head.finish(products[start : start + size])


def _measure(statistic: str, distribution: Distribution, labels: Tensor | None) -> Tensor:
    if statistic == "entropy":
        return distribution.entropy().float()
    if statistic == "top1":
        return distribution.logits.argmax(-1)
    assert labels is not None
    return distribution.log_probabilities(labels[:, None])[:, 0].float()
