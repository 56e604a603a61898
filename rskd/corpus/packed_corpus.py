"""A packed corpus on disk or in an object store: Parquet parts of windows, and the manifest that lists them.

    <uri>/manifest.json               sealed JSON, written last: a corpus without it does not exist
    <uri>/parts/part-00000.parquet    row_id int64, input_ids list<int32> (S+1); zstd; row groups of 16 rows;
                                      of conversations also loss_mask list<uint8> (S+1): 1 where a token has a loss

Shapes: R rows, S = seq_len positions (a window stores S+1 tokens), G row groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rskd import records
from rskd.corpus.chat_packing import CHAT_TOTALS
from rskd.errors import CacheMismatchError, CorruptPartError, MissingOutputError
from rskd.storage import Store

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
PARTS_FOLDER = "parts"
_POSITIONS_PER_GROUP = 2**16  # a megabyte of a cache, which is worth a request to an object store
TOTALS = ("documents", "tokens", "windows", "dropped_tail_tokens")
_NO_BOS = ("bos", "none")
_GROWING = ("groups", "parts", "totals", "fingerprint")


@dataclass(frozen=True)
class Windows:
    """Packed training sequences: `row_ids` int64 [R], `input_ids` int32 [R, S+1] and, of conversations, `loss_mask`.

    That is uint8 [R, S+1], 1 where the token at that place has a loss, so the position before it does; None where every
    token has one. Place 0 of a window, which nothing predicts, is 0.
    """

    row_ids: np.ndarray
    input_ids: np.ndarray
    loss_mask: np.ndarray | None = None

    @property
    def has_loss(self) -> np.ndarray | None:
        """Which positions have a loss, bool [R, S]: those whose next token has one. None: all."""
        return None if self.loss_mask is None else self.loss_mask[:, 1:] > 0


@dataclass(frozen=True, slots=True)
class PartInfo:
    """One Parquet file: rows [first_row, first_row + rows)."""

    index: int
    file: str  # name under the corpus's URI
    first_row: int
    rows: int
    sha256: str
    bytes: int


def rows_per_group(seq_len: int) -> int:
    """Windows in a row group of a corpus or cache: what a loader shuffles by and reads at once."""
    return max(1, _POSITIONS_PER_GROUP // seq_len)


@dataclass(frozen=True)
class CorpusManifest:
    """Everything that a reader, or a later pack, has to know about one split of a corpus."""

    format_version: int
    source: dict[str, Any]  # kind, uri, field of the config
    tokenizer: dict[str, Any]  # name, fingerprint, vocab_size, end_of_text_id (what ends a document), bos_ids
    seq_len: int
    seed: int
    isolate_documents: bool
    windows_per_part: int
    rows_per_group: int
    eval_threshold: int  # a document whose content hash, times eval_multiplier, is below it is held out
    groups: tuple[dict[str, Any], ...]  # each: files (see rskd.corpus.sources), its share of the totals, tail of a pack
    parts: tuple[PartInfo, ...]
    totals: dict[str, int]  # documents, tokens, windows, dropped_tail_tokens; of conversations also CHAT_TOTALS
    fingerprint: str  # of the ordered contents: sha256 over the sha256 of each part
    max_windows: int | None = None  # of the train split; what was beyond it counts as dropped
    bos: str = "none"  # document, window: where the tokenizer's bos_ids are; corpora without this field have none
    eval_multiplier: int = 1  # see rskd.corpus.hold_out
    # Of conversations: loss_on, template, named (its special tokens by name), separator (the token of end_of_text_id).
    chat: dict[str, Any] | None = None

    @classmethod
    def of(cls, head: Mapping[str, Any], groups: Iterable[dict[str, Any]], parts: Iterable[PartInfo]) -> CorpusManifest:
        """The manifest of these groups and their parts; `head` has the fields before them."""
        groups, parts = tuple(groups), tuple(sorted(parts, key=lambda part: part.index))
        return cls(
            **head,
            groups=groups,
            parts=parts,
            totals={key: sum(group[key] for group in groups) for key in totals_of(head)},
            fingerprint=hashlib.sha256("\n".join(part.sha256 for part in parts).encode()).hexdigest(),
        )

    @property
    def shares(self) -> dict[str, float]:
        """Of conversations: the share of positions that have a loss, and of places that are padding."""
        if self.chat is None:
            return {}
        windows, totals = max(self.totals["windows"], 1), self.totals
        return {
            "loss_share": totals["loss_tokens"] / (windows * self.seq_len),
            "padding_share": totals["padding_tokens"] / (windows * (self.seq_len + 1)),
        }

    @property
    def duplicate_documents(self) -> int:
        """Copies of documents that were packed at once with them; groups of an older rskd were not counted."""
        return sum(group.get("duplicate_documents", 0) for group in self.groups)

    @property
    def tail(self) -> np.ndarray:
        """The tokens, int32, after the last window, with which the stream of the next pack begins."""
        return np.array(self.groups[-1].get("tail", ()) if self.groups else (), np.int32)

    @property
    def head(self) -> dict[str, Any]:
        """What stays the same when a corpus grows."""
        return {name: value for name, value in self._fields().items() if name not in _GROWING}

    def up_to(self, num_groups: int) -> CorpusManifest:
        """The manifest before all groups but the first `num_groups` were added."""
        groups = self.groups[:num_groups]
        rows = sum(group["windows"] for group in groups)
        return CorpusManifest.of(self.head, groups, (part for part in self.parts if part.first_row < rows))

    def to_dict(self) -> dict[str, Any]:
        """As it is sealed, without the usual eval_multiplier and chat: older corpora keep their digest."""
        content = self._fields() | {"parts": [asdict(part) for part in self.parts]}
        if self.eval_multiplier == 1:
            del content["eval_multiplier"]
        if self.chat is None:
            del content["chat"]
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CorpusManifest:
        """Inverse of `to_dict`."""
        parts = tuple(PartInfo(**part) for part in content["parts"])
        return cls(**{**content, "parts": parts, "groups": tuple(content["groups"])})

    @cached_property
    def digest(self) -> str:
        """sha256 of the canonical JSON, without `bos` where there is none: older corpora have no such field."""
        return records.digest({name: value for name, value in self.to_dict().items() if (name, value) != _NO_BOS})

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


class PackedCorpus:
    """Reads one split of a packed corpus. Safe to use from several threads.

    A part is checked against its sha256 when it is first read; after that only the row groups asked for are read.
    """

    def __init__(self, uri: str, manifest: CorpusManifest):
        self.uri = uri
        self.manifest = manifest
        self._store = Store(uri)
        self._checked: dict[int, pq.FileMetaData] = {}

    @classmethod
    def open(cls, uri: str) -> PackedCorpus:
        """Raises MissingOutputError where nothing was packed, CorruptPartError for a changed manifest."""
        manifest = read_manifest(Store(uri))
        if manifest is None:
            raise MissingOutputError(f"corpus {uri} does not exist: run rskd pack")
        return cls(uri, manifest)

    @property
    def num_rows(self) -> int:
        return self.manifest.totals["windows"]

    @property
    def seq_len(self) -> int:
        return self.manifest.seq_len

    @cached_property
    def group_rows(self) -> np.ndarray:
        """int64 [G, 2]: first row id and number of rows of each Parquet row group, in order of row ids."""
        size = self.manifest.rows_per_group
        firsts, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for part in self.manifest.parts:
            first = np.arange(part.first_row, part.first_row + part.rows, size)
            firsts.append(first)
            ends.append(np.minimum(first + size, part.first_row + part.rows))
        first = np.concatenate(firsts)
        return np.stack([first, np.concatenate(ends) - first], axis=1)

    def read_part(self, index: int) -> Windows:
        """All windows of one part."""
        part = self.manifest.parts[index]
        return self.read_rows(np.arange(part.first_row, part.first_row + part.rows))

    def read_groups(self, group_indices: Iterable[int]) -> Windows:
        """The windows of these row groups, in the order asked for."""
        groups = self.group_rows[np.asarray(list(group_indices), np.int64)]
        ranges = [np.arange(first, first + rows) for first, rows in groups]
        return self.read_rows(np.concatenate([np.empty(0, np.int64), *ranges]))

    def read_rows(self, row_ids: Iterable[int] | np.ndarray) -> Windows:
        """These windows, in the order asked for; each row group is read once.

        Raises IndexError for a row that does not exist, CorruptPartError for a part that changed.
        """
        wanted = np.asarray(row_ids, np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < self.num_rows):
            raise IndexError(f"row ids must be in [0, {self.num_rows}), got {wanted.min()}..{wanted.max()}")
        found = {name: np.empty((len(wanted), self.seq_len + 1), dtype) for name, dtype in self._columns.items()}
        part_of = np.searchsorted([part.first_row for part in self.manifest.parts], wanted, side="right") - 1
        for index in np.unique(part_of):
            here = part_of == index
            for name, values in self._read_from_part(self.manifest.parts[index], wanted[here]).items():
                found[name][here] = values
        return Windows(wanted, **found)

    @property
    def _columns(self) -> dict[str, type]:
        """The columns of a value for each token, with their types."""
        return {"input_ids": np.int32} | ({} if self.manifest.chat is None else {"loss_mask": np.uint8})

    def _read_from_part(self, part: PartInfo, row_ids: np.ndarray) -> dict[str, np.ndarray]:
        group_of, offset = np.divmod(row_ids - part.first_row, self.manifest.rows_per_group)
        groups = np.unique(group_of)
        if part.index in self._checked:
            with self._store.open(part.file) as file:
                reader = pq.ParquetFile(file, metadata=self._checked[part.index])
                table = reader.read_row_groups(groups.tolist(), use_threads=False)
        else:
            parquet = self._checked_part(part)
            table = parquet.read_row_groups(groups.tolist())
            self._checked[part.index] = parquet.metadata
        # Every group but a part's last one is full, so a row's place in the table follows from its group's.
        place = np.searchsorted(groups, group_of) * self.manifest.rows_per_group + offset
        if not np.array_equal(table["row_id"].to_numpy()[place], row_ids):
            raise self._corrupt(part, "has other row ids than the manifest says")
        flat = {name: table[name].combine_chunks().flatten().to_numpy() for name in self._columns}
        return {name: values.reshape(-1, self.seq_len + 1)[place] for name, values in flat.items()}

    def _checked_part(self, part: PartInfo) -> pq.ParquetFile:
        try:
            data = self._store.read(part.file)
        except MissingOutputError:
            raise self._corrupt(part, "has no data file") from None
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise self._corrupt(part, f"is not what was written ({len(data)} bytes, {part.bytes} were)")
        return pq.ParquetFile(pa.BufferReader(data))

    def _corrupt(self, part: PartInfo, problem: str) -> CorruptPartError:
        return CorruptPartError(
            f"part-{part.index:05d} of corpus {self.uri} {problem}: remove the corpus folder and run rskd pack"
        )


def totals_of(head: Mapping[str, Any]) -> tuple[str, ...]:
    """What is counted of a corpus with this head."""
    return TOTALS if head.get("chat") is None else (*TOTALS, *CHAT_TOTALS)


def read_manifest(store: Store) -> CorpusManifest | None:
    """The manifest of a corpus, None where nothing was packed; CorruptPartError if it was changed."""
    content = records.read(store, MANIFEST_FILE)
    if content is None:
        return None
    if content["format_version"] != FORMAT_VERSION:
        raise CacheMismatchError(
            f"corpus {store.uri} has format_version {content['format_version']}, this rskd reads {FORMAT_VERSION}: "
            "use the rskd that made it"
        )
    return CorpusManifest.from_dict(content)


def write_manifest(store: Store, manifest: CorpusManifest) -> None:
    """Make a corpus, with all its parts, visible."""
    records.write(store, MANIFEST_FILE, manifest.to_dict())


def write_part(
    store: Store,
    index: int,
    first_row: int,
    input_ids: np.ndarray,
    *,
    rows_per_group: int,
    loss_mask: np.ndarray | None = None,
) -> PartInfo:
    """Write the windows `input_ids` int32 and `loss_mask` uint8, [R, S+1], as one part; equal ones give equal bytes."""
    columns = {"input_ids": input_ids} | ({} if loss_mask is None else {"loss_mask": loss_mask})
    data = _encode(first_row, columns, rows_per_group)
    file = f"{PARTS_FOLDER}/part-{index:05d}.parquet"
    store.write(file, data)
    return PartInfo(index, file, first_row, len(input_ids), hashlib.sha256(data).hexdigest(), len(data))


def _encode(first_row: int, columns: Mapping[str, np.ndarray], rows_per_group: int) -> bytes:
    rows, width = columns["input_ids"].shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * np.int32(width))
    lists = {name: pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1))) for name, values in columns.items()}
    table = pa.table({"row_id": pa.array(np.arange(first_row, first_row + rows)), **lists})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=rows_per_group)
    return sink.getvalue().to_pybytes()
