"""One part of a cache as Parquet bytes: flat arrays and offsets, no Python loop over positions.

    PartData (padded) ─► canonical order ─► flat values + offsets ─► pa.Table ─► encode ─► bytes of a part

Within a position, entries are in order of falling value, then rising id (plain: falling counts end in runs of ones),
or of rising rank (compact).

Shapes: R rows, S positions, K unique tokens. The columns are described in README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rskd.cache.layout import Layout
from rskd.teacher_statistics import STATISTICS

ZSTD_LEVEL = 3  # level 9 saves 2% and writes at half the speed


@dataclass(frozen=True)
class PartData:
    """What a teacher worker hands over for one part; an entry with value 0 is padding."""

    row_ids: np.ndarray  # int64 [R]
    input_ids: np.ndarray  # int32 [R, S+1]
    ids: np.ndarray  # int32 [R, S, K]
    values: np.ndarray  # [R, S, K]: counts, weights or probabilities, by the layout
    statistics: Mapping[str, np.ndarray]  # each [R, S]


def flat(table: pa.Table, column: str) -> np.ndarray:
    """All elements of a list column, one after the other; no copy where the column is one chunk."""
    lists = _one_chunk(table, column)
    start, end = lists.offsets[0].as_py(), lists.offsets[-1].as_py()
    return lists.values[start:end].to_numpy()


def list_lengths(table: pa.Table, column: str) -> np.ndarray:
    """Elements in each row of a list column, int64 [R]."""
    return np.diff(_one_chunk(table, column).offsets.to_numpy())


def _one_chunk(table: pa.Table, column: str) -> pa.ListArray:
    chunked = table[column]
    return chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()


def window_hash(input_ids: np.ndarray) -> np.ndarray:
    """int64 [R] of int32 [R, S+1]: the sum, mod 2^64, of splitmix64(position · 2^32 + id).

    Sums of well-mixed words tell any two windows apart but for one chance in 2^64, whatever the order of summation.
    """
    position = np.arange(input_ids.shape[1], dtype=np.uint64) << np.uint64(32)
    word = input_ids.astype(np.uint64) + position
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word ^= word >> np.uint64(shift)
        word *= np.uint64(factor)
    word ^= word >> np.uint64(31)
    return word.sum(1, dtype=np.uint64).view(np.int64)


def to_table(data: PartData, layout: Layout) -> pa.Table:
    """The columns of a part, entries in canonical order."""
    num_rows, num_positions = data.ids.shape[:2]
    positions = np.full(num_rows, num_positions)
    columns = {
        "row_id": pa.array(data.row_ids, pa.int64()),
        "input_ids": _lists(data.input_ids.astype(np.int32, copy=False), _lengths(data.input_ids)),
        "window_hash": pa.array(window_hash(data.input_ids)),
    }
    for entries, (lengths, ids, values) in zip(layout.entries, _entries(data, layout)):
        per_row = lengths.reshape(num_rows, -1).sum(1, dtype=np.int64)
        columns[entries.lengths] = _lists(lengths, positions)
        columns[entries.ids] = _lists(ids, per_row)
        if entries.values is not None:
            columns[entries.values] = _lists(values, per_row)
    for name in layout.statistics:
        columns[name] = _lists(data.statistics[name].astype(STATISTICS[name].stored), positions)
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    return pa.table(list(columns.values()), schema=pa.schema(fields))


def num_unique(table: pa.Table, layout: Layout) -> np.ndarray:
    """Entries of each position, int64 [R·S]."""
    return np.stack([flat(table, entries.lengths) for entries in layout.entries]).sum(0, dtype=np.int64)


def encode(table: pa.Table, rows_per_group: int) -> tuple[bytes, list[int]]:
    """Parquet bytes of a part, and where each of its row groups and its footer end.

    They hold no clock, host or path, so equal tables give equal bytes.
    """
    lists = [f"{name}.list.element" for name in table.column_names if pa.types.is_list(table[name].type)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=rows_per_group,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        use_dictionary=False,
        column_encoding=cast(Any, dict.fromkeys(lists, "BYTE_STREAM_SPLIT")),
        write_statistics=cast(Any, ["row_id"]),
        write_page_checksum=True,
        store_schema=False,
    )
    encoded = sink.getvalue()
    metadata = pq.read_metadata(pa.BufferReader(encoded))
    return encoded.to_pybytes(), [*(_end(metadata.row_group(g)) for g in range(metadata.num_row_groups)), encoded.size]


def _end(group: pq.RowGroupMetaData) -> int:
    """Where the last column of a row group ends in its file."""
    last = group.column(group.num_columns - 1)
    return min(last.dictionary_page_offset or last.data_page_offset, last.data_page_offset) + last.total_compressed_size


def _entries(data: PartData, layout: Layout) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Lengths [R·S], ids or gaps, and values, for each of the layout's entries.

    An entry is sorted as one integer. plain: the complement of its value's bits, which order like the value since none
    is negative, above its id. compact: whether it was drawn once, above its rank, above its value.
    """
    values = data.values.astype(layout.value_type).reshape(-1, data.values.shape[-1])
    ids = data.ids.reshape(values.shape)
    chosen = values > 0
    lengths = chosen.sum(-1).astype(layout.count_type)
    value_bits = 8 * values.itemsize
    if layout.ranked is None:
        id_bits = int(ids.max(initial=0)).bit_length()
        complement = ~values.view(f"u{values.itemsize}")
        keys = complement.astype(_key_type(value_bits + id_bits)) << id_bits
        keys |= ids
        found = _sorted(keys, chosen)
        in_order = ~(found >> id_bits).astype(complement.dtype)
        return [(lengths, (found & (1 << id_bits) - 1).astype(np.int32), in_order.view(values.dtype))]
    single_bit = value_bits + len(layout.ranked).bit_length()
    rank = np.empty(len(layout.ranked), _key_type(single_bit + 1))
    rank[layout.ranked] = np.arange(len(rank)) << value_bits
    keys = rank[ids]
    keys |= values
    keys[values == 1] |= 1 << single_bit
    found = _sorted(keys, chosen)
    single = found >= 1 << single_bit
    ranks, counts = (found & (1 << single_bit) - 1) >> value_bits, found.astype(values.dtype)
    num_repeated = (values > 1).sum(-1).astype(layout.count_type)
    num_single = lengths - num_repeated
    return [
        (num_repeated, _to_gaps(ranks[~single], num_repeated), counts[~single]),
        (num_single, _to_gaps(ranks[single], num_single), counts[single]),
    ]


def _key_type(bits: int) -> type[np.signedinteger]:
    """Of keys of so many bits; the greatest number of the type is left for padding. Narrow keys sort faster."""
    return np.int32 if bits < 32 else np.int64


def _sorted(keys: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The chosen ones of `keys` [P, K], rising within each position, one position after the other."""
    padding = np.iinfo(keys.dtype).max
    keys[~chosen] = padding
    keys.sort(axis=-1)
    return keys[keys != padding]


def _to_gaps(ranks: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Differences of the rising ranks of each position, int32; the first is the rank itself."""
    gaps = np.diff(ranks, prepend=0)
    first = (np.cumsum(lengths) - lengths)[lengths > 0]
    gaps[first] = ranks[first]
    return gaps.astype(np.int32)


def from_gaps(gaps: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Ranks of all entries, from their gaps and the number of entries of each position; int64."""
    total = np.cumsum(gaps, dtype=np.uint32)  # modulo 2^32, which the difference to the position's start undoes
    starts = np.cumsum(lengths) - lengths
    before = np.concatenate([np.zeros(1, np.uint32), total])[starts]
    return (total - np.repeat(before, lengths)).astype(np.int64)


def _lengths(array: np.ndarray) -> np.ndarray:
    return np.full(len(array), array.shape[1])


def _lists(values: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    """Rows of `lengths` [R] elements each, cut from `values` in order."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    elements = pa.array(values.reshape(-1))
    kind = pa.list_(pa.field("element", elements.type, nullable=False))
    return pa.ListArray.from_arrays(pa.array(offsets), elements, type=kind)
