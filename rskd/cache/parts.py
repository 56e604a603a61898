"""The parts of a cache: a record of each, and the list of them in pages where a manifest of them all would be slow.

    parts ─► pages of PAGE_PARTS ─► parts-<first 12 hex of sha256>.parquet ─► `pages` of the manifest

A manifest of at most PAGE_PARTS parts has them in it. A larger one has `pages` (file, parts, sha256) in place of
`parts`, and PAGED_VERSION as its format_version, which older readers refuse. Pages are written before the manifest that
names them, and are named by their content: writers that lose, and later generations with equal first pages, write equal
bytes. They are read when a part is first asked for, each checked against its sha256, and are held as Arrow columns, 200
bytes a part, from which records are made one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rskd.errors import CorruptPartError, MissingOutputError
from rskd.storage import Store

PAGED_VERSION = 3  # of a manifest in pages; else it has that of all other files
PAGE_PARTS = 2**16  # a page of 8 MB


class PartRecord(NamedTuple):
    """A committed part: rows [first_row, first_row + rows), `samples` entries in all.

    A tuple, since a large cache has 100,000 of them and a tuple is made in a fifth of the time of a dataclass.
    """

    index: int
    file: str  # name under the cache's URI
    first_row: int
    rows: int
    tokens: int
    samples: int
    bytes: int
    sha256: str
    corpus_sha256: str  # of the part of the corpus that it was made from
    record_sha256: str  # of the commit record
    teacher_loss: float | None = None  # sum of -log p(label) over the positions, nats; older parts have none
    loss_tokens: int | None = None  # positions that have a loss, so entries; None: all have

    def to_dict(self) -> dict[str, Any]:
        """As it is sealed: what is unknown is left out, so that older records stay as they are."""
        return {name: value for name, value in self._asdict().items() if value is not None}


_HASHES = ("sha256", "corpus_sha256", "record_sha256")
_TYPES = {"file": pa.string(), "teacher_loss": pa.float64(), **dict.fromkeys(_HASHES, pa.binary(32))}
_SCHEMA = pa.schema([(name, _TYPES.get(name, pa.int64())) for name in PartRecord._fields])


@dataclass(frozen=True, slots=True)
class Page:
    """A file of so many parts."""

    file: str  # name under the cache's URI
    parts: int
    sha256: str


class PagedParts(Sequence[PartRecord]):
    """The parts in pages under a store; raises CorruptPartError if a page is missing or changed."""

    def __init__(self, store: Store, pages: Sequence[Page]):
        self._store = store
        self.pages = tuple(pages)

    def __len__(self) -> int:
        return sum(page.parts for page in self.pages)

    @overload
    def __getitem__(self, index: int) -> PartRecord: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[PartRecord, ...]: ...
    def __getitem__(self, index: int | slice) -> PartRecord | tuple[PartRecord, ...]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        place = range(len(self))[index]
        return next(_records(self._table.slice(place, 1)))

    def __iter__(self) -> Iterator[PartRecord]:
        for batch in self._table.to_batches(max_chunksize=1024):
            yield from _records(pa.Table.from_batches([batch]))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PagedParts):
            return self.pages == other.pages
        return isinstance(other, tuple) and len(other) == len(self) and all(map(tuple.__eq__, self, other))

    def column(self, name: str) -> np.ndarray:
        """One field of all parts, a number."""
        return self._table[name].to_numpy()

    def check(self) -> None:
        """Read all pages."""
        if len(self._table) != len(self):
            raise CorruptPartError(
                f"pages of {self._store.uri} hold {len(self._table)} parts, and the manifest says {len(self)}: run "
                "rskd verify --repair on the cache, then rskd cache"
            )

    def to_dicts(self) -> list[dict[str, Any]]:
        """As a manifest has its pages."""
        return [asdict(page) for page in self.pages]

    @cached_property
    def _table(self) -> pa.Table:
        return pa.concat_tables(_read_page(self._store, page) for page in self.pages)


def in_pages(store: Store, parts: Sequence[PartRecord]) -> Sequence[PartRecord]:
    """The parts as a manifest is to have them: as they are, or written in pages if they are many."""
    if len(parts) <= PAGE_PARTS or isinstance(parts, PagedParts):
        return parts
    pages = (_write_page(store, parts[start : start + PAGE_PARTS]) for start in range(0, len(parts), PAGE_PARTS))
    return PagedParts(store, list(pages))


def is_page(name: str) -> bool:
    """Whether a file under a cache's URI is called as pages are."""
    return re.fullmatch(r"parts-[0-9a-f]{12}\.parquet", name) is not None


def part_rows(parts: Sequence[PartRecord]) -> np.ndarray:
    """First row and number of rows of each part, int64 [P, 2]."""
    if isinstance(parts, PagedParts):
        return np.stack([parts.column("first_row"), parts.column("rows")], axis=1)
    return np.array([(part.first_row, part.rows) for part in parts], np.int64).reshape(-1, 2)


def _write_page(store: Store, parts: Sequence[PartRecord]) -> Page:
    columns = dict(zip(PartRecord._fields, zip(*parts), strict=True))
    for name in _HASHES:
        columns[name] = tuple(map(bytes.fromhex, columns[name]))
    sink = pa.BufferOutputStream()
    table = pa.table({name: pa.array(values, _SCHEMA.field(name).type) for name, values in columns.items()})
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    data = sink.getvalue().to_pybytes()
    found = sha256(data).hexdigest()
    page = Page(f"parts-{found[:12]}.parquet", len(parts), found)
    store.create(page.file, data)
    return page


def _read_page(store: Store, page: Page) -> pa.Table:
    origin = f"{store.uri}/{page.file}"
    try:
        data = store.read(page.file)
    except MissingOutputError:
        raise CorruptPartError(f"{origin} is missing: run rskd verify --repair on the cache, then rskd cache") from None
    if sha256(data).hexdigest() != page.sha256:
        raise CorruptPartError(
            f"{origin} is not what was written (its sha256 differs): run rskd verify --repair on the cache, then rskd "
            "cache"
        )
    return pq.read_table(pa.BufferReader(data), use_threads=False, schema=_SCHEMA)


def _records(table: pa.Table) -> Iterator[PartRecord]:
    columns = {name: table[name].to_pylist() for name in PartRecord._fields}
    for name in _HASHES:
        columns[name] = [value.hex() for value in columns[name]]
    return map(PartRecord, *columns.values())
