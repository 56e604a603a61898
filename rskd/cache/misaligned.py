"""A cache whose students read other contexts than its teacher did, to measure what that costs (paper, D.3, Table 13).

    part ─► its documents in another order, cut into windows anew; each token keeps its targets ─► part of the copy

A token then stands behind other documents, and at another place in its window, than when the teacher gave its targets:
the paper's different shuffle seeds of teacher and student. Everything that reads a cache refuses the copy, since its
`window_hash` stays that of the windows that the teacher read; only `LogitCache.open(uri, allow_misaligned=True)` does
not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rskd.cache.codec import PartData, to_table
from rskd.cache.layout import Layout
from rskd.cache.manifest import CacheManifest
from rskd.cache.reader import LogitCache, read_part_file
from rskd.cache.rows import RowGroup
from rskd.cache.writer import CacheWriter
from rskd.errors import ConfigError
from rskd.rng import permutation
from rskd.storage import Store


class _CorpusPart(NamedTuple):
    index: int
    first_row: int
    rows: int
    sha256: str


def misaligned_copy(uri: str, out: str, *, seed: int = 0) -> CacheManifest:
    """Copy the cache at `uri` to `out` with the documents of each part in another order; none keeps its place.

    What a part begins with or ends in the middle of counts as a document; the latter stays last. Raises ConfigError for
    a part with fewer than two documents before that, and what reading and writing a cache raise.
    """
    store, manifest = Store(uri), LogitCache.open(uri).manifest
    writer, layout = CacheWriter(out, manifest_head=manifest.head), Layout.of(manifest.head)
    for part in manifest.parts:
        table = pq.read_table(pa.BufferReader(read_part_file(store, part)))
        rows = RowGroup.of_table(table, layout)
        ends = 1 + np.flatnonzero(rows.input_ids[:, :-1].reshape(-1) == manifest.corpus["end_of_text_id"])
        if len(ends) < 2:
            raise ConfigError(f"part {part.index} of cache {uri} ends fewer than two documents: make larger parts")
        documents = np.split(np.arange(part.tokens), ends)
        order = np.concatenate([documents[i] for i in (*_moved(len(ends), seed, stream=part.index), -1)])
        moved = to_table(_in_order(rows, order), layout)
        place = moved.column_names.index("window_hash")
        moved = moved.set_column(place, moved.schema.field(place), table["window_hash"])
        writer.commit_table(part.index, moved, corpus_sha256=part.corpus_sha256)
    return writer.finish([_CorpusPart(p.index, p.first_row, p.rows, p.corpus_sha256) for p in manifest.parts])


def _in_order(rows: RowGroup, order: np.ndarray) -> PartData:
    """The positions of `rows` in `order` [R·S], cut into windows again."""
    assert rows.targets is not None
    ids, values = rows.targets.padded()

    def moved(column: np.ndarray) -> np.ndarray:
        return column.reshape(-1, *column.shape[2:])[order].reshape(column.shape)

    tokens = np.append(rows.input_ids[:, :-1].reshape(-1)[order], rows.input_ids[-1, -1])
    seq_len = rows.input_ids.shape[1] - 1
    return PartData(
        row_ids=rows.row_ids,
        input_ids=np.lib.stride_tricks.sliding_window_view(tokens, seq_len + 1)[::seq_len],
        ids=moved(ids),
        values=moved(values),
        statistics={name: moved(column) for name, column in rows.statistics.items()},
    )


def _moved(size: int, seed: int, *, stream: int) -> np.ndarray:
    """For each of `size` places another place: the next in a random circle of all."""
    circle = permutation(size, seed=seed, stream=stream).numpy()
    moved = np.empty(size, np.int64)
    moved[circle] = np.roll(circle, 1)
    return moved
