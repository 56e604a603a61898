"""A cache whose students read other windows than its teacher did, to measure what that costs (paper, D.3, Table 13).

    part ─► input_ids moved to other rows; window_hash, targets and statistics stay ─► part of the copy

Everything that reads a cache refuses the copy, since `window_hash` is that of the windows that the teacher read; only
`LogitCache.open(uri, allow_misaligned=True)` does not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rskd.cache.manifest import CacheManifest
from rskd.cache.reader import LogitCache, read_part_file
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
    """Copy the cache at `uri` to `out` with the windows of each part shuffled under the targets; none keeps its own.

    Raises ConfigError for a part of one window, which cannot be shuffled, and what reading and writing a cache raise.
    """
    store, manifest = Store(uri), LogitCache.open(uri).manifest
    writer = CacheWriter(out, manifest_head=manifest.head)
    for part in manifest.parts:
        if part.rows < 2:
            raise ConfigError(f"part {part.index} of cache {uri} has one window, nothing to shuffle it with")
        table = pq.read_table(pa.BufferReader(read_part_file(store, part)))
        shuffled = table["input_ids"].take(pa.array(_moved(part.rows, seed, stream=part.index)))
        place = table.column_names.index("input_ids")
        table = table.set_column(place, table.schema.field(place), shuffled)
        writer.commit_table(part.index, table, corpus_sha256=part.corpus_sha256)
    return writer.finish([_CorpusPart(p.index, p.first_row, p.rows, p.corpus_sha256) for p in manifest.parts])


def _moved(rows: int, seed: int, *, stream: int) -> np.ndarray:
    """For each of `rows` places another place: the next in a random circle of all."""
    circle = permutation(rows, seed=seed, stream=stream).numpy()
    moved = np.empty(rows, np.int64)
    moved[circle] = np.roll(circle, 1)
    return moved
