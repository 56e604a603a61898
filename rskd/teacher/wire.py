"""Sampled rows as one int32 matrix, for the way from an engine's worker to the job.

    Order ─► process boundary ─► SampledRows ─► pack ─► int32 [R, W] ─► process boundary ─► unpack ─► SampledRows

A row costs 4 bytes a column. Its columns, sampling by sampling: N ids, one a count (systematic, and random at
temperature 1), else as many ids as may be kept, and as many values. One column follows for each statistic. W depends
on the order alone, so that pieces of one sequence can be put together.

Shapes: R rows, W columns, K unique tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rskd.teacher.hidden_to_targets import Order, SampledRows
from rskd.teacher.sampling import Drawn, Sampling, merge
from rskd.teacher_statistics import STATISTICS, StatisticName


def pack(rows: SampledRows, order: Order) -> Tensor:
    """int32 [R, W] of `rows`, made to `order`; float values as their bits."""
    columns = [_pack_drawn(rows.drawn[name], sampling) for name, sampling in order.samplings.items()]
    return torch.cat([*columns, *(_bits(rows.statistics[name])[:, None] for name in order.statistics)], dim=1)


def unpack(packed: Tensor, order: Order) -> SampledRows:
    """What `pack` was given."""
    widths = [*map(_width, order.samplings.values()), *[1] * len(order.statistics)]
    columns = iter(packed.split(widths, dim=1))
    drawn = {name: _unpack_drawn(next(columns), sampling) for name, sampling in order.samplings.items()}
    return SampledRows(drawn, {name: _unpack_statistic(name, next(columns)[:, 0]) for name in order.statistics})


def width(order: Order) -> int:
    """W."""
    return sum(map(_width, order.samplings.values())) + len(order.statistics)


def _width(sampling: Sampling) -> int:
    return sampling.num_samples if sampling.draws_counts else 2 * _most_kept(sampling)


def _most_kept(sampling: Sampling) -> int:
    """The most unique tokens at a position."""
    if sampling.method == "random":
        return sampling.num_samples
    assert sampling.k is not None  # Sampling checks it
    return sampling.k


def _pack_drawn(drawn: Drawn, sampling: Sampling) -> Tensor:
    if sampling.draws_counts:
        repeated = drawn.ids.flatten().repeat_interleave(drawn.values.flatten())
        return repeated.reshape(len(drawn.ids), sampling.num_samples).int()
    padding = (0, _most_kept(sampling) - drawn.ids.shape[1])
    return torch.cat([F.pad(drawn.ids.int(), padding), F.pad(_bits(drawn.values), padding)], dim=1)


def _unpack_drawn(packed: Tensor, sampling: Sampling) -> Drawn:
    if sampling.draws_counts:
        return merge(packed.long(), torch.ones_like(packed, dtype=torch.int64))
    ids, bits = packed.chunk(2, dim=1)
    return merge(ids.long(), bits.contiguous().view(torch.float32))


def _bits(values: Tensor) -> Tensor:
    return values.view(torch.int32) if values.dtype == torch.float32 else values.int()


def _unpack_statistic(name: StatisticName, column: Tensor) -> Tensor:
    return column.long() if STATISTICS[name].is_id else column.contiguous().view(torch.float32)
