"""Rows of a cache in memory: entries stay as they are stored until a batch of rows pads them.

    Parquet row group ─► RowGroup (flat entries) ─► rows of any groups ─► CacheRows (padded)

Shapes: R rows, S positions, P = R·S, E entries of all positions together, K unique tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rskd.cache.codec import flat, from_gaps, list_lengths, num_unique
from rskd.cache.layout import Layout
from rskd.sparse_targets import SparseTargets

_CHUNK = 2**14  # elements that are padded at once: in the processor's cache


@dataclass(frozen=True)
class RowGroup:
    """Decoded rows."""

    row_ids: np.ndarray  # int64 [R]
    input_ids: np.ndarray  # int32 [R, S+1]
    targets: FlatTargets | None = None  # None: a corpus
    statistics: Mapping[str, np.ndarray] = field(default_factory=dict)  # each [R, S]
    loss_mask: np.ndarray | None = None  # bool [R, S]: positions that have a loss; None: all

    @classmethod
    def of_table(cls, table: pa.Table, layout: Layout) -> RowGroup:
        """The rows of a table, at least one."""
        shape = (table.num_rows, -1)
        return cls(
            table["row_id"].to_numpy(),
            flat(table, "input_ids").reshape(shape),
            FlatTargets.of_table(table, layout),
            {name: flat(table, name).reshape(shape) for name in layout.statistics},
            num_unique(table, layout).reshape(shape) > 0 if layout.masked else None,
        )


class FlatEntries(NamedTuple):
    """Some entries of each position, one position after the other."""

    lengths: np.ndarray  # how many, [R, S]
    ids: np.ndarray  # int32 [E]
    values: np.ndarray  # [E] in the type of the column


@dataclass(frozen=True)
class FlatTargets:
    """Targets as they are stored: a weight is value / rounds."""

    entries: tuple[FlatEntries, ...]  # of the layout, in its order
    starts: tuple[np.ndarray, ...]  # of each: the first entry of each row, and the end; int64 [R+1]
    rounds: int

    @classmethod
    def of_table(cls, table: pa.Table, layout: Layout) -> FlatTargets:
        """The targets of all rows of a table."""
        found, starts = [], []
        for names in layout.entries:
            lengths, ids = flat(table, names.lengths), flat(table, names.ids)
            starts.append(np.concatenate([[0], np.cumsum(list_lengths(table, names.ids))]))
            if layout.ranked is not None:
                ids = layout.ranked.take(from_gaps(ids, lengths))
            values = np.ones_like(ids, layout.value_type) if names.values is None else flat(table, names.values)
            found.append(FlatEntries(lengths.reshape(table.num_rows, -1), ids, values))
        return cls(tuple(found), tuple(starts), layout.rounds)

    def row(self, place: int) -> list[FlatEntries]:
        """The entries of one row, whose lengths are [S]."""
        return [
            FlatEntries(all_rows.lengths[place], all_rows.ids[here], all_rows.values[here])
            for all_rows, starts in zip(self.entries, self.starts)
            for here in [slice(starts[place], starts[place + 1])]
        ]

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 and values of all rows [R, S, K], K the most unique tokens at a position."""
        rows = map(self.row, range(len(self.starts[0]) - 1))
        return _pad(list(rows), np.int32, self.entries[0].values.dtype.type)


@dataclass(frozen=True)
class CacheRows:
    """Windows and their targets, in the order asked for."""

    row_ids: Tensor  # int64 [R]
    input_ids: Tensor  # int64 [R, S+1]
    targets: SparseTargets | None  # ids int64 and weights float32 [R, S, K]; None: a corpus
    statistics: dict[str, Tensor] = field(default_factory=dict)  # by name, each [R, S]: float32, or int64 for top1
    loss_mask: Tensor | None = None  # bool [R, S]: positions that have a loss; None: all

    @classmethod
    def of(cls, places: Sequence[tuple[RowGroup, int]]) -> CacheRows:
        """The rows at these places in their groups, at least one; K the most unique tokens at a position of theirs."""
        first, _ = places[0]
        return cls(
            torch.from_numpy(np.array([group.row_ids[place] for group, place in places])),
            _stack(lambda group: group.input_ids, places, np.int64),
            None if first.targets is None else _stack_targets(places),
            {
                name: _stack(lambda group, name=name: group.statistics[name], places, _wide(values.dtype))
                for name, values in first.statistics.items()
            },
            None if first.loss_mask is None else _stack(_loss_mask, places, np.bool_),
        )

    def __len__(self) -> int:
        return len(self.row_ids)


def _loss_mask(group: RowGroup) -> np.ndarray:
    assert group.loss_mask is not None  # all groups of a source have one, or none
    return group.loss_mask


def _wide(kind: np.dtype) -> type[np.generic]:
    return np.int64 if kind.kind == "i" else np.float32


def _stack(
    column: Callable[[RowGroup], np.ndarray], places: Sequence[tuple[RowGroup, int]], kind: type[np.generic]
) -> Tensor:
    rows = [column(group)[place] for group, place in places]
    return torch.from_numpy(np.stack(rows, dtype=kind, casting="same_kind"))


def _stack_targets(places: Sequence[tuple[RowGroup, int]]) -> SparseTargets:
    found = [(group.targets, place) for group, place in places if group.targets is not None]
    ids, weights = _pad([targets.row(place) for targets, place in found], np.int64, np.float32)
    rounds = found[0][0].rounds
    if rounds > 1:
        weights /= rounds
    return SparseTargets(torch.from_numpy(ids), torch.from_numpy(weights))


def _pad(
    rows: Sequence[Sequence[FlatEntries]], id_type: type[np.generic], value_type: type[np.generic]
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and values of all entries of each position side by side, then zeros; [R, S, K]."""
    entries = list(zip(*rows))
    lengths = [np.concatenate([row.lengths for row in one], dtype=np.int64) for one in entries]
    ends = list(accumulate(lengths))
    width = max(1, int(ends[-1].max(initial=0)))
    starts = [width + np.cumsum(length) - end for length, end in zip(lengths, ends)]
    ids = np.empty((len(starts[0]), width), id_type)
    values = np.empty((len(starts[0]), width), value_type)
    _fill(ids, [[row.ids for row in one] for one in entries], starts, ends)
    _fill(values, [[row.values for row in one] for one in entries], starts, ends)
    shape = (len(rows), -1, width)
    return ids.reshape(shape), values.reshape(shape)


def _fill(
    padded: np.ndarray,
    columns: Sequence[Sequence[np.ndarray]],
    starts: Sequence[np.ndarray],
    ends: Sequence[np.ndarray],
) -> None:
    """Set places [ends[i-1][p], ends[i][p]) of row p of `padded` [P, K] to the next elements of each column i.

    A column comes in pieces; with a margin of K before them, place 0 of row p is its element starts[i][p]. Whole runs
    of elements are copied, and what does not belong is masked: twice as fast as setting places by a mask.
    """
    kind, width = columns[0][0].dtype, padded.shape[1]
    bits = np.dtype(f"u{kind.itemsize}")
    margin = np.zeros(width, kind)
    runs = [_runs(np.concatenate([margin, *pieces, margin]), width) for pieces in columns]
    before = _runs(
        np.concatenate([~margin.view(bits), margin.view(bits)]), width
    )  # at width-n: all bits before place n
    size = max(1, _CHUNK // width)
    for chunk in (slice(at, at + size) for at in range(0, len(padded), size)):
        found = before[width - ends[0][chunk]].view(bits)
        found &= runs[0][starts[0][chunk]].view(bits)
        for i in range(1, len(columns)):
            mask = before[width - ends[i][chunk]].view(bits)
            mask ^= before[width - ends[i - 1][chunk]].view(bits)
            mask &= runs[i][starts[i][chunk]].view(bits)
            found |= mask
        padded[chunk] = found.view(kind).reshape(-1, width)


def _runs(elements: np.ndarray, width: int) -> np.ndarray:
    """The `width` elements from each place on, as one opaque item each: numpy copies it whole."""
    size = elements.itemsize
    return np.ndarray(len(elements) - width + 1, (np.void, width * size), elements, strides=(size,))
