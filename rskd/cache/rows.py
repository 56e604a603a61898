"""Rows of a cache in memory: each row group is padded once, when it is read; a batch copies whole rows of it.

    Parquet row group ─► flat entries ─► RowGroup (padded, as narrow as stored) ─► rows of any groups ─► CacheRows

Shapes: R rows, S positions, P = R·S, K unique tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rskd.cache.codec import flat, from_gaps
from rskd.cache.layout import Layout
from rskd.sparse_targets import SparseTargets

_CHUNK = 2**14  # elements that are padded at once: in the processor's cache


@dataclass(frozen=True)
class RowGroup:
    """Decoded rows."""

    row_ids: np.ndarray  # int64 [R]
    input_ids: np.ndarray  # int32 [R, S+1]
    targets: PaddedTargets | None = None  # None: a corpus
    statistics: Mapping[str, np.ndarray] = field(default_factory=dict)  # each [R, S]

    @classmethod
    def of_table(cls, table: pa.Table, layout: Layout) -> RowGroup:
        """The rows of a table, at least one."""
        shape = (table.num_rows, -1)
        return cls(
            table["row_id"].to_numpy(),
            flat(table, "input_ids").reshape(shape),
            PaddedTargets.of_table(table, layout),
            {name: flat(table, name).reshape(shape) for name in layout.statistics},
        )


@dataclass(frozen=True)
class PaddedTargets:
    """Targets as narrow as they are stored; padding has id 0 and value 0."""

    ids: np.ndarray  # int32 [R, S, K]
    values: np.ndarray  # [R, S, K] in the type of the column
    rounds: int  # a weight is value / rounds

    @classmethod
    def of_table(cls, table: pa.Table, layout: Layout) -> PaddedTargets:
        """The targets of all rows of a table, K the most unique tokens among them."""
        lengths = [flat(table, entries.lengths).astype(np.int64) for entries in layout.entries]
        ends = np.cumsum(lengths, axis=0)
        width = max(1, ends[-1].max(initial=0))
        padded = []
        for entries, length, end in zip(layout.entries, lengths, ends):
            ids = flat(table, entries.ids)
            if layout.ranked is not None:
                ids = layout.ranked.take(from_gaps(ids, length))
            values = np.ones_like(ids, layout.value_type) if entries.values is None else flat(table, entries.values)
            padded.append(_padded((ids, values), end - length, length, width))
        ids, values = (reduce(partial(np.bitwise_or, out=bits[0]), bits) for bits in zip(*padded))
        shape = (table.num_rows, -1, width)
        return cls(ids.view(np.int32).reshape(shape), values.view(layout.value_type).reshape(shape), layout.rounds)


@dataclass(frozen=True)
class CacheRows:
    """Windows and their targets, in the order asked for."""

    row_ids: Tensor  # int64 [R]
    input_ids: Tensor  # int64 [R, S+1]
    targets: SparseTargets | None  # ids int64 and weights float32 [R, S, K]; None: a corpus
    statistics: dict[str, Tensor]  # of the teacher, by name, each [R, S]: float32, or int64 for top1

    @classmethod
    def of(cls, places: Sequence[tuple[RowGroup, int]]) -> CacheRows:
        """The rows at these places in their groups, at least one; K the most that any of the groups has."""
        first, _ = places[0]
        return cls(
            torch.from_numpy(np.array([group.row_ids[place] for group, place in places])),
            _stack(lambda group: group.input_ids, places, np.int64),
            None if first.targets is None else _stack_targets(places),
            {
                name: _stack(lambda group, name=name: group.statistics[name], places, _wide(values.dtype))
                for name, values in first.statistics.items()
            },
        )

    def __len__(self) -> int:
        return len(self.row_ids)


def _wide(kind: np.dtype) -> type[np.generic]:
    return np.int64 if kind.kind == "i" else np.float32


def _stack(
    column: Callable[[RowGroup], np.ndarray], places: Sequence[tuple[RowGroup, int]], kind: type[np.generic]
) -> Tensor:
    rows = [column(group)[place] for group, place in places]
    return torch.from_numpy(np.stack(rows, dtype=kind, casting="same_kind"))


def _stack_targets(places: Sequence[tuple[RowGroup, int]]) -> SparseTargets:
    found = [(group.targets, place) for group, place in places if group.targets is not None]
    width = max(targets.ids.shape[2] for targets, _ in found)
    shape = (len(found), found[0][0].ids.shape[1], width)
    ids, weights = np.empty(shape, np.int64), np.empty(shape, np.float32)
    for row, (targets, place) in enumerate(found):
        here = targets.ids.shape[2]
        ids[row, :, :here] = targets.ids[place]
        np.divide(targets.values[place], targets.rounds, out=weights[row, :, :here], dtype=np.float32)
        ids[row, :, here:] = 0
        weights[row, :, here:] = 0
    return SparseTargets(torch.from_numpy(ids), torch.from_numpy(weights))


def _padded(columns: Sequence[np.ndarray], first: np.ndarray, lengths: np.ndarray, width: int) -> list[np.ndarray]:
    """Of each column, the bits of its next `lengths` [P] elements at the places from `first` on, 0 elsewhere.

    [P, width] each. Whole runs of elements are copied, and what does not belong is masked: twice as fast as setting
    places by a mask.
    """
    ends = np.cumsum(lengths)
    starts = ends - lengths - first + width
    last = first + lengths
    shifted = first.any()
    padded = []
    for elements in columns:
        bits = np.dtype(f"u{elements.itemsize}")
        below = np.tril(np.full((width + 1, width), -1, np.int64), -1).astype(bits)  # row n: all bits before place n
        margin = np.zeros(len(elements) + 2 * width, bits)
        margin[width : width + len(elements)] = elements.view(bits)
        runs = np.ndarray(len(elements) + width + 1, (np.void, width * bits.itemsize), margin, strides=margin.strides)
        found = np.empty((len(lengths), width), bits)
        for chunk in (slice(at, at + _CHUNK // width) for at in range(0, len(lengths), _CHUNK // width)):
            filled = below.take(last[chunk], axis=0)
            if shifted:
                filled ^= below.take(first[chunk], axis=0)
            np.bitwise_and(runs[starts[chunk]].view(bits).reshape(-1, width), filled, out=found[chunk])
        padded.append(found)
    return padded
