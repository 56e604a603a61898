"""Reading a cache: rows in any order, each checked before it is handed on.

    row ids or row groups ─► part and place in it ─► Parquet row groups ─► check ─► RowGroup, CacheRows

Every byte is checked before it is decoded: the manifest's digest covers the commit records, a record the sha256 of each
row group and of the footer. So only the groups asked for are read. Row ids and window hashes of all rows that come out
are checked too, against a writer that was wrong.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rskd.cache.codec import flat, window_hash
from rskd.cache.layout import Layout
from rskd.cache.manifest import (
    PARTS_FOLDER,
    CacheManifest,
    PartRecord,
    Segment,
    committed_indices,
    corrupt_part,
    expected_parts,
    fold,
    folded,
    manifest_name,
    newest_manifest,
    read_commit,
    read_commits,
    read_head,
    read_manifest,
)
from rskd.cache.parts import part_rows
from rskd.cache.rows import CacheRows, RowGroup
from rskd.errors import ConfigError, MissingOutputError, first_line
from rskd.storage import Store

_OPEN_PARTS = 1024  # whose footers are kept
_REQUESTS = 16  # to an object store at once


@dataclass(frozen=True)
class _OpenPart:
    """What it takes to read any row group of a part."""

    segments: tuple[Segment, ...]
    metadata: pq.FileMetaData


class LogitCache:
    """A cache at a URI, open for reading; `LogitCache.open` makes one."""

    def __init__(self, store: Store, manifest: CacheManifest, *, allow_misaligned: bool = False):
        self.uri = store.uri
        self.manifest = manifest
        self._allow_misaligned = allow_misaligned
        self._store = store
        self._layout = Layout.of(manifest.head)
        self._opened = lru_cache(_OPEN_PARTS)(self._open_part)

    @classmethod
    def open(
        cls,
        uri: str,
        *,
        allow_partial: bool = False,
        generation: int | None = None,
        allow_misaligned: bool = False,
    ) -> LogitCache:
        """The newest `generation` of a cache, or an older one; with `allow_partial` what an unfinished one has.

        `allow_misaligned` reads windows that are not those that the teacher saw (`rskd.cache.misaligned`).

        Raises MissingOutputError if there is no cache or it is unfinished, CorruptPartError for a changed manifest.
        """
        store = Store(uri)
        if generation is not None:
            if not store.exists(manifest_name(generation)):
                raise MissingOutputError(f"cache {uri} has no generation {generation}: leave it out for the newest")
            return cls(store, read_manifest(store, generation), allow_misaligned=allow_misaligned)
        manifest = newest_manifest(store)
        if manifest is None and not allow_partial:
            head, done = read_head(store), committed_indices(store.list(PARTS_FOLDER))
            expected = expected_parts(head, done) or "an unknown number of"
            raise MissingOutputError(f"cache {uri} is unfinished ({len(done)} of {expected} parts): run rskd cache")
        return cls(store, manifest or committed_so_far(store), allow_misaligned=allow_misaligned)

    @property
    def num_rows(self) -> int:
        """Windows."""
        return self.manifest.totals["rows"]

    @property
    def num_tokens(self) -> int:
        """Positions: rows · S."""
        return self.manifest.totals["tokens"]

    @property
    def seq_len(self) -> int:
        """Positions S in a window."""
        return self.manifest.corpus["seq_len"]

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        return self.manifest.tokenizer["vocab_size"]

    @cached_property
    def group_rows(self) -> np.ndarray:
        """First row id and number of rows of each Parquet row group, in order of row ids; int64 [G, 2]."""
        part = np.repeat(np.arange(len(self._part_rows)), self._part_groups)
        start = (np.arange(len(part)) - self._first_group[part]) * self._rows_per_group
        rows = np.minimum(self._rows_per_group, self._part_rows[part, 1] - start)
        return np.stack([self._part_rows[part, 0] + start, rows], axis=1)

    def read_rows(self, row_ids: Sequence[int] | np.ndarray | torch.Tensor) -> CacheRows:
        """Rows by row id, in the order asked for; ConfigError for a row that is not in the cache."""
        wanted = np.asarray(row_ids, dtype=np.int64).reshape(-1)
        part = np.searchsorted(self._part_rows[:, 0], wanted, side="right") - 1
        place = wanted - self._part_rows[part, 0]
        absent = wanted[(part < 0) | (place >= self._part_rows[part, 1])]
        if not len(wanted) or len(absent):
            asked = f"row {absent[0]}" if len(absent) else "no rows"
            raise ConfigError(f"{asked} asked of cache {self.uri}: ask for rows that it has, it has {self.num_rows}")
        groups, inverse = np.unique(self._first_group[part] + place // self._rows_per_group, return_inverse=True)
        found = self.read_groups(groups)
        places = (place % self._rows_per_group).tolist()
        return CacheRows.of([(found[group], row) for group, row in zip(inverse.tolist(), places)])

    def read_groups(self, groups: Sequence[int] | np.ndarray) -> list[RowGroup]:
        """Whole row groups, by their index in `group_rows`, as asked for.

        Raises CorruptPartError, naming the part, if anything about them is not as it was written.
        """
        wanted = np.asarray(groups, dtype=np.int64).tolist()
        if self._store.is_local:
            return list(map(self._read_group, wanted))
        with ThreadPoolExecutor(_REQUESTS) as pool:
            return list(pool.map(self._read_group, wanted))

    def _read_group(self, group: int) -> RowGroup:
        part = int(np.searchsorted(self._first_group, group, side="right")) - 1
        record, place = self.manifest.parts[part], group - int(self._first_group[part])
        try:
            with self._store.explained(record.file):
                opened = self._opened(part)
                file = _Piece(*_read_segment(self._store, record, opened.segments, place), record.bytes)
                parquet = pq.ParquetFile(file, metadata=opened.metadata, pre_buffer=False)
                table = parquet.read_row_group(place, use_threads=False)
        except MissingOutputError:
            raise corrupt_part(self.uri, record.index, f"is missing ({record.file})") from None
        except (OSError, pa.ArrowException) as error:
            raise corrupt_part(self.uri, record.index, f"cannot be read ({first_line(error)})") from None
        self._check_rows(table, group, record)
        return RowGroup.of_table(table, self._layout)

    def _open_part(self, part: int) -> _OpenPart:
        record = self.manifest.parts[part]
        commit = read_commit(self._store, record.index)
        if commit.part != record:
            raise corrupt_part(self.uri, record.index, "has another commit record than the manifest says")
        _, footer = _read_segment(self._store, record, commit.segments, len(commit.segments) - 1)
        return _OpenPart(commit.segments, pq.read_metadata(pa.BufferReader(footer)))

    def _check_rows(self, table: pa.Table, group: int, record: PartRecord) -> None:
        first, num_rows = self.group_rows[group]
        same_rows = np.array_equal(table["row_id"].to_numpy(), np.arange(first, first + num_rows))
        if same_rows and self._allow_misaligned:
            return
        hashes = window_hash(flat(table, "input_ids").reshape(num_rows, -1))
        if not same_rows or not np.array_equal(table["window_hash"].to_numpy(), hashes):
            problem = "holds other windows than its row ids and window hashes say"
            raise corrupt_part(self.uri, record.index, problem)

    @cached_property
    def _part_rows(self) -> np.ndarray:
        """First row and rows of each part, int64 [P, 2]."""
        return part_rows(self.manifest.parts)

    @property
    def _rows_per_group(self) -> int:
        return self.manifest.corpus["rows_per_group"]

    @cached_property
    def _part_groups(self) -> np.ndarray:
        return -(-self._part_rows[:, 1] // self._rows_per_group)

    @cached_property
    def _first_group(self) -> np.ndarray:
        return np.cumsum(self._part_groups) - self._part_groups


class _Piece:
    """A file of which one piece is at hand, from `start` on: what Arrow needs to read a row group."""

    closed = False

    def __init__(self, start: int, piece: bytes, size: int):
        self._start = start
        self._piece = memoryview(piece)
        self._size = size
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> memoryview:
        found = self._piece[self._position - self._start :][:size]
        self._position += len(found)
        return found

    def close(self) -> None:
        pass


def _read_segment(store: Store, part: PartRecord, segments: Sequence[Segment], index: int) -> tuple[int, bytes]:
    """Where a segment of a part file starts, and its bytes; CorruptPartError if they are not what was written."""
    start = segments[index - 1].end if index else 0
    data = store.read(part.file, start, segments[index].end)
    if sha256(data).hexdigest() != segments[index].sha256:
        raise corrupt_part(store.uri, part.index, "is not what was written (its sha256 differs)")
    return start, data


def committed_so_far(store: Store) -> CacheManifest:
    """What a manifest of the parts that are committed would say, for an unfinished cache."""
    head = read_head(store)
    parts, histograms = folded(read_commits(store, committed_indices(store.sizes(PARTS_FOLDER))))
    return fold(head, parts, [histograms], generation=0)


def read_part_file(store: Store, part: PartRecord) -> bytes:
    """A whole part as Parquet; CorruptPartError if it is missing or changed."""
    try:
        data = store.read(part.file)
    except MissingOutputError:
        raise corrupt_part(store.uri, part.index, f"is missing ({part.file})") from None
    if sha256(data).hexdigest() != part.sha256:
        raise corrupt_part(store.uri, part.index, "is not what was written (its sha256 differs)")
    return data
