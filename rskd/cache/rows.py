"""Rows of a cache in memory: flat as they are stored, padded to tensors when these are asked for.

    Parquet row group ─► RowGroup ─► any rows of any groups ─► CacheRows ─► padded tensors

Shapes: R rows, S positions, K unique tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import accumulate

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rskd.cache.codec import from_gaps
from rskd.cache.layout import Entries, Layout
from rskd.sparse_targets import SparseTargets


@dataclass(frozen=True)
class RowGroup:
    """Decoded rows: the elements of each column, and where those of each row begin, with the end last."""

    columns: Mapping[str, tuple[np.ndarray, Sequence[int]]]
    layout: Layout | None  # None: windows without targets

    @classmethod
    def of_table(cls, table: pa.Table, layout: Layout) -> RowGroup:
        """The rows of a table, less their hashes; no copy of columns of one chunk."""
        names = (name for name in table.column_names if name != "window_hash")
        return cls({name: _elements(table, name) for name in names}, layout)

    @classmethod
    def of_windows(cls, row_ids: np.ndarray, input_ids: np.ndarray) -> RowGroup:
        """Windows of a corpus, from int64 [R] and int32 [R, S+1]."""
        rows, width = input_ids.shape
        starts = range(0, (rows + 1) * width, width)
        return cls({"row_id": (row_ids, range(rows + 1)), "input_ids": (input_ids.reshape(-1), starts)}, None)


class CacheRows:
    """Windows and their targets, in the order asked for."""

    def __init__(self, columns: Mapping[str, np.ndarray], layout: Layout | None):
        self._columns = columns
        self._layout = layout

    @classmethod
    def of(cls, places: Sequence[tuple[RowGroup, int]]) -> CacheRows:
        """The rows at these places in their groups, one copy of the flat data."""
        first = places[0][0]
        return cls({name: np.concatenate(_pieces(name, places)) for name in first.columns}, first.layout)

    def __len__(self) -> int:
        return len(self._columns["row_id"])

    @cached_property
    def row_ids(self) -> Tensor:
        """int64 [R]."""
        return torch.from_numpy(self._columns["row_id"])

    @cached_property
    def input_ids(self) -> Tensor:
        """Token ids int64 [R, S+1]."""
        return torch.from_numpy(self._by_row("input_ids").astype(np.int64))

    @cached_property
    def targets(self) -> SparseTargets | None:
        """Ids int64 and weights float32 [R, S, K], K the most unique tokens among these rows; None for a corpus."""
        layout = self._layout
        if layout is None:
            return None
        lengths = [self._columns[entries.lengths].astype(np.int64) for entries in layout.entries]
        ends = list(accumulate(lengths))
        width = max(1, ends[-1].max(initial=0))
        padded = [
            self._padded(layout, entries, length, end, width)
            for entries, length, end in zip(layout.entries, lengths, ends)
        ]
        ids, weights = (reduce(np.bitwise_or, bits) for bits in zip(*padded))
        shape = (len(self), -1, width)
        padded_ids, padded_weights = ids.astype(np.int64), weights.view(np.float32)
        return SparseTargets(*(torch.from_numpy(array.reshape(shape)) for array in (padded_ids, padded_weights)))

    @cached_property
    def statistics(self) -> dict[str, Tensor]:
        """Statistics of the teacher by name, each [R, S]: float32, or int64 for top1."""
        stored = {name: self._by_row(name) for name in (self._layout.statistics if self._layout else ())}
        return {
            name: torch.from_numpy(values.astype(np.int64 if values.dtype.kind == "i" else np.float32))
            for name, values in stored.items()
        }

    def windows(self) -> np.ndarray:
        """Token ids int32 [R, S+1] as they are stored."""
        return self._by_row("input_ids")

    def _by_row(self, column: str) -> np.ndarray:
        return self._columns[column].reshape(len(self), -1)

    def _padded(
        self, layout: Layout, entries: Entries, lengths: np.ndarray, ends: np.ndarray, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids, and the bits of float32 weights, int32 [R·S, width], of entries whose last place is before `ends`."""
        ids = self._columns[entries.ids]
        ids = ids if layout.ranked is None else layout.ranked[from_gaps(ids, lengths)]
        values = np.ones(len(ids), np.uint8) if entries.values is None else self._columns[entries.values]
        weights = np.divide(values, layout.rounds, dtype=np.float32).view(np.int32)
        starts = np.cumsum(lengths) - ends  # of runs whose first entry is at place ends - lengths
        filled = _filled(ends - lengths, ends, width)
        padded = _runs(ids, starts, width), _runs(weights, starts, width)
        for runs in padded:
            runs &= filled
        return padded


def _elements(table: pa.Table, column: str) -> tuple[np.ndarray, Sequence[int]]:
    chunked = table[column]
    array = chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()
    if not pa.types.is_list(array.type):
        return array.to_numpy(), range(len(array) + 1)
    return array.values.to_numpy(), array.offsets.to_pylist()


def _pieces(column: str, places: Sequence[tuple[RowGroup, int]]) -> list[np.ndarray]:
    pieces = []
    for group, place in places:
        elements, starts = group.columns[column]
        pieces.append(elements[starts[place] : starts[place + 1]])
    return pieces


def _filled(first: np.ndarray, end: np.ndarray, width: int) -> np.ndarray:
    """int32 [P, width]: all bits at places [first, end) of a row, none elsewhere."""
    below = np.tril(np.full((width + 1, width), -1, np.int32), -1)
    filled = below.take(end, axis=0)
    return filled ^ below.take(first, axis=0) if first.any() else filled


def _runs(elements: np.ndarray, starts: np.ndarray, width: int) -> np.ndarray:
    """int32 [P, width]: `width` elements from each start on, 0 where there are none; whole runs are copied at once."""
    padded = np.zeros(len(elements) + 2 * width, elements.dtype)
    padded[width : width + len(elements)] = elements
    run = np.dtype((np.void, width * elements.itemsize))
    overlapping = np.ndarray(len(elements) + width + 1, run, padded, strides=padded.strides)
    return overlapping[starts + width].view(elements.dtype).reshape(-1, width)
